import { Type } from '@sinclair/typebox'
import { Value } from '@sinclair/typebox/value'
import { validationFailed } from '../../src/errors.ts'
import { ContentType, Purpose, Sha256 } from './schemas.ts'

type Metadata = { filename?: string; filetype?: string; purpose?: string; sha256?: string }

const expectations = {
  filetype: 'must be a media type of at most 127 characters',
  purpose: `must match pattern "${Purpose.pattern}"`,
  sha256: `must match pattern "${Sha256.pattern}"`
}

/** `key base64,key base64`; keys that are not known are left alone, as tus says. */
export function readMetadata(header: string): Metadata {
  const entries = header.split(',').flatMap((pair) => {
    const [key = '', value = ''] = pair.trim().split(' ')
    return ['filename', 'filetype', 'purpose', 'sha256'].includes(key)
      ? [[key, Buffer.from(value, 'base64').toString()]]
      : []
  })
  const facts = Object.fromEntries(entries) as Metadata
  for (const [key, schema] of [
    // clients that know no type send an empty one
    ['filetype', Type.Union([Type.Literal(''), ContentType])],
    ['purpose', Purpose],
    ['sha256', Sha256]
  ] as const) {
    if (facts[key] === undefined || Value.Check(schema, facts[key])) continue
    const message = `: ${key} ${expectations[key]}`
    throw validationFailed({
      detail: `headers/upload-metadata${message}`,
      errors: [{ path: '/headers/upload-metadata', message: message.slice(2) }]
    })
  }
  return facts
}
