import { Type } from '@sinclair/typebox'
import { Value } from '@sinclair/typebox/value'
import { invalidMembers, messageKeyword } from '../../src/http/field-errors.ts'
import type { Problem } from '../../src/http/problems.ts'
import { readUtf8 } from '../../src/text.ts'
import { ContentType, Purpose, Sha256 } from './schemas.ts'

type Metadata = { filename?: string; filetype?: string; purpose?: string; sha256?: string }

const asciiKey = /^[\x21-\x7e]+$/
const base64 = /^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}(?:==)?|[A-Za-z0-9+/]{3}=?)?$/
const expectations = {
  filetype: 'must be a media type of at most 127 characters',
  purpose: Purpose[messageKeyword],
  sha256: Sha256[messageKeyword]
}

/**
 * Parses Upload-Metadata: `key base64,key base64`, or an empty text. Malformed pairs are refused for every key. Values
 * of unknown keys are ignored, as tus requires.
 */
export function readMetadata(header: string): Metadata {
  const seen = new Set<string>()
  const entries = (header === '' ? [] : header.split(',')).flatMap((pair) => {
    const [key = '', value = '', ...rest] = pair.trim().split(' ')
    if (!asciiKey.test(key) || rest.length > 0)
      throw invalid('must be pairs of a key and a value, with commas between them')
    if (seen.has(key)) throw invalid('must have each key once')
    seen.add(key)
    if (!base64.test(value)) throw invalid('must have values in base64')
    if (!['filename', 'filetype', 'purpose', 'sha256'].includes(key)) return []
    const text = readUtf8(Buffer.from(value, 'base64'))
    if (text === undefined) throw invalid(`${key} must be UTF-8 in base64`)
    return [[key, text]]
  })
  const facts = Object.fromEntries(entries) as Metadata
  for (const [key, schema] of [
    // clients send an empty type when they know none
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
