import { Type } from '@sinclair/typebox'
import { Value } from '@sinclair/typebox/value'
import type { Problem } from '../../src/errors.ts'
import { invalidMembers, sentenceKeyword } from '../../src/field-errors.ts'
import { readUtf8 } from '../../src/text.ts'
import { ContentType, Purpose, Sha256 } from './schemas.ts'

type Metadata = { filename?: string; filetype?: string; purpose?: string; sha256?: string }

const base64 = /^[A-Za-z0-9+/]*={0,2}$/
const expectations = {
  filetype: 'must be a media type of at most 127 characters',
  purpose: Purpose[sentenceKeyword],
  sha256: Sha256[sentenceKeyword]
}

/** `key base64,key base64`; keys that are not known are left alone, as tus says. */
export function readMetadata(header: string): Metadata {
  const entries = header.split(',').flatMap((pair) => {
    const [key = '', value = ''] = pair.trim().split(' ')
    if (!['filename', 'filetype', 'purpose', 'sha256'].includes(key)) return []
    const text = base64.test(value) ? readUtf8(Buffer.from(value, 'base64')) : undefined
    if (text === undefined) throw invalid(`${key} must be UTF-8 in base64`)
    return [[key, text]]
  })
  const facts = Object.fromEntries(entries) as Metadata
  for (const [key, schema] of [
    // clients that know no type send an empty one
    ['filetype', Type.Union([Type.Literal(''), ContentType])],
    ['purpose', Purpose],
    ['sha256', Sha256]
  ] as const) {
    if (facts[key] === undefined || Value.Check(schema, facts[key])) continue
    throw invalid(`${key} ${expectations[key]}`)
  }
  return facts
}

function invalid(message: string): Problem {
  return invalidMembers([{ path: '/headers/upload-metadata', message }])
}
