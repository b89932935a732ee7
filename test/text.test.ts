import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fullFormats } from 'ajv-formats/dist/formats.js'
import fc from 'fast-check'
import t from 'tap'
import { createOneTimeTokens } from '../src/auth/one-time-tokens.ts'
import { createRefreshTokens } from '../src/auth/refresh-tokens.ts'
import { createFileLinks } from '../src/files/file-links.ts'
import { attachment, cleanFileName, extensionOf, foldText } from '../src/files/file-names.ts'
import { requireFileType } from '../src/files/file-types.ts'
import { detectFileType } from '../src/files/magic-numbers.ts'
import { readAddress } from '../src/http/addresses.ts'
import { parseRange } from '../src/http/byte-ranges.ts'
import { createCursors } from '../src/http/cursors.ts'
import { matchesTag, tenantTag } from '../src/http/etags.ts'
import { parseHost } from '../src/http/host-header.ts'
import { canonicalJson, hasDuplicateMembers } from '../src/http/json.ts'
import { isDecodable } from '../src/http/paths.ts'
import { createKeyRing } from '../src/keys.ts'
import { mailboxOf } from '../src/mail/mailboxes.ts'
import { nameInMail, nameInSubject, trimName } from '../src/names.ts'
import { isReservedSlug } from '../src/tenancy/slugs.ts'
import { truncateText } from '../src/text.ts'
import { fileForm } from './forms.ts'
import { createTenant, post, root, startApp } from './harness.ts'
import { stopwatch } from './machine.ts'
import { countSteps } from './steps.ts'

/*
 * Every function that takes text of a client gets 64 KiB of the worst text for it, and its steps are counted (steps.ts). They must
 * be a constant number for each character. A clock would measure the machine too, and a quadratic function is fast on short texts.
 */

const size = 65_536
/** The bound: more steps per character than any of them takes, and a thousandth of those of a quadratic function on 64 Ki. */
const stepsPerCharacter = 64

const ring = createKeyRing(['a secret of the tests'], 'text')
const cursors = createCursors(ring)
const [links, refreshTokens, oneTimeTokens] = [
  createFileLinks(ring),
  createRefreshTokens(ring),
  createOneTimeTokens(ring)
]

/** Calls a function that may throw on a text that it refuses. */
function quietly(work: () => unknown): void {
  try {
    const result = work()
    if (result instanceof Promise) result.catch(() => {})
  } catch {
    // refused
  }
}

const tag = tenantTag({ id: '01890a5d-ac96-774b-bcce-b302099a8057', version: 3, members: 2, storage_bytes: 1 })
const takers: Record<string, (text: string) => unknown> = {
  cleanFileName,
  trimName,
  nameInMail: (text) => nameInMail(text),
  nameInSubject,
  mailboxOf,
  readAddress,
  extensionOf,
  foldText,
  attachment: (text) => attachment(text.toWellFormed()),
  truncateText: (text) => truncateText(text, 30_000),
  'requireFileType, the name': (text) => requireFileType(Buffer.from('hello'), text, 'text/plain', detectFileType),
  'requireFileType, the type': (text) => requireFileType(Buffer.from('hello'), 'a.txt', text, detectFileType),
  parseRange: (text) => parseRange(text, 1000),
  'parseRange, digits': (text) => parseRange(`bytes=${text}`, 1000),
  matchesTag: (text) => matchesTag(text, tag),
  parseHost: (text) => parseHost(text, 'aggios.example', () => true),
  isReservedSlug,
  isDecodable,
  hasDuplicateMembers: (text) => hasDuplicateMembers(JSON.stringify({ text }), { text }),
  canonicalJson: (text) => canonicalJson({ [text]: text, a: [...text.slice(0, 1000)] }),
  cursors: (text) => cursors.require('list', text),
  'links of files': (text) => links.verify('read', text),
  'refresh tokens': (text) => refreshTokens.verify(text),
  'tokens of mails': (text) => oneTimeTokens.verify('invitation', text)
}

/** Every text that the API accepts, by its pattern. */
function patternsOf(part: unknown, found = new Set<string>()): Set<string> {
  if (part === null || typeof part !== 'object') return found
  const { pattern } = part as { pattern?: unknown }
  if (typeof pattern === 'string') found.add(pattern)
  for (const each of Object.values(part)) patternsOf(each, found)
  return found
}
const patterns = patternsOf(JSON.parse(readFileSync(join(root, 'client/openapi.json'), 'utf8')))
for (const pattern of patterns) {
  const expression = new RegExp(pattern, 'u')
  takers[`pattern ${pattern}`] = (text) => expression.test(text)
}
for (const name of ['email', 'uuid', 'date-time', 'uri'] as const) {
  const format = fullFormats[name]
  const check = typeof format === 'object' && 'validate' in format ? format.validate : format
  takers[`format ${name}`] = (text) =>
    check instanceof RegExp ? check.test(text) : (check as (text: string) => unknown)(text)
}
/** The regular expressions of the sources. */
const sources = ['src', 'plugins', 'routes', 'db'].flatMap((folder) =>
  readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' }).map((name) => `${folder}/${name}`)
)
for (const file of sources.filter((name) => name.endsWith('.ts') && !name.startsWith('db/migrations/'))) {
  const source = readFileSync(join(root, file), 'utf8')
  for (const [, body, flags] of source.matchAll(
    /(?<=[=(]\s?)\/((?:[^/\\\n[]|\\.|\[(?:[^\]\\\n]|\\.)*\])+)\/([a-z]*)/g
  )) {
    const expression = new RegExp(body as string, flags)
    takers[`${file} /${body}/${flags}`] = (text) => expression.exec(text)
  }
}

/** Parts of texts: special characters, texts that break systems, and beginnings of what functions search for. */
const pieces = [
  ...' !"#$%&\'()*+,-./:;<=>?@[\\]^_`{|}~'.split(''),
  ...[
    '\t',
    '\r\n',
    '\0',
    '\u00a0',
    '\u0301',
    '\u0301\u0316',
    '\u3099\u0334',
    '\u202e',
    '\ufeff',
    '\ud83d',
    '\udca9',
    '\ud83d\ude00',
    '\ufdfa',
    'ß',
    'İ'
  ],
  ...[
    'a',
    'A',
    '0',
    'a.',
    '.a',
    'a-',
    '-a',
    'a b',
    '%',
    '%2',
    '%2e',
    '%ff',
    '../',
    '\\"',
    '""',
    '"",',
    'W/"',
    '1-1,',
    '::',
    'xn--',
    'bytes=',
    'boundary="'
  ],
  ...['bearer ', 'http://', 'a@a.', 'urn:uuid:', 'form-data; ', 'filename="', '=?utf-8?', '{"a":', '[[', '\\u0000']
]
const filled = (piece: string) => piece.repeat(Math.ceil(size / piece.length)).slice(0, size)
// not `unit: 'binary'`, which makes a map of all characters first
const unit = fc.integer({ min: 0, max: 0x10ffff }).map((code) => String.fromCodePoint(code))
const piece = fc.oneof(fc.constantFrom(...pieces), fc.string({ minLength: 1, maxLength: 4, unit }))
/** A text with a beginning, a long run of one part or of two alternating parts, and an end that doesn't match. */
const worst = fc
  .record({ start: piece, run: piece, other: fc.option(piece, { nil: '' }), end: piece })
  .map(({ start, run, other, end }) => start + filled(run + other).slice(start.length + end.length) + end)

const stepsOf = (take: (text: string) => unknown, text: string) =>
  countSteps(() => quietly(() => take(text)), stepsPerCharacter * size)

t.test('steps are counted', (t) => {
  const quadratic: Record<string, (text: string) => unknown> = {
    'what is read anew for each character': (text) => {
      for (let i = 0; i < 4096; i++) text.includes(`${i}x`)
    },
    'a name that is shortened by one character at a time': (text) => {
      let stem = text
      for (let i = 0; i < 2000; i++) stem = [...stem].slice(0, -1).join('')
    },
    'an expression that goes back': (text) => /^(?:a+)+$/.test(text),
    'an expression that begins anew everywhere': (text) => /a+b$/.test(text),
    'accents that are sorted': (text) => text.normalize('NFC')
  }
  const texts = [`${filled('a').slice(1)}.`, filled('\u0301\u0316')]
  for (const [what, take] of Object.entries(quadratic)) {
    t.ok(
      texts.some((text) => stepsOf(take, text) > stepsPerCharacter * size),
      what
    )
  }
  t.ok(stepsOf((text) => text.toLowerCase().replace(/[^a-z]/g, ''), filled('a-')) < 8 * size)
  t.end()
})

t.test('whatever takes text takes a number of steps for each character', (t) => {
  t.ok(patterns.size > 5)
  t.ok(Object.keys(takers).filter((name) => name.includes('.ts /')).length >= 4, 'expressions are found')
  for (const [name, take] of Object.entries(takers)) {
    let [most, by] = [0, '']
    const look = (text: string) => {
      const steps = stepsOf(take, text)
      if (steps > most) [most, by] = [steps, text.slice(0, 20)]
      return steps <= stepsPerCharacter * size
    }
    t.ok(pieces.map(filled).every(look), `${name}: ${(most / size).toFixed(1)} a character, by ${JSON.stringify(by)}`)
    t.doesNotThrow(() => fc.assert(fc.property(worst, look), { numRuns: 5 }), `${name}, at random`)
  }
  t.end()
})

t.test('a name that is cut keeps what it is called and its extension', (t) => {
  const cut = (name: string) => cleanFileName(name)
  t.equal(cut(`${'x'.repeat(30_000)}.pdf`), `${'x'.repeat(251)}.pdf`)
  t.equal(cut(`first ${'\u{1f600}'.repeat(30_000)}.pdf`), `first ${'\u{1f600}'.repeat(61)}.pdf`)
  t.equal(cut(`${'/'.repeat(30_000)}a.pdf`), 'a.pdf')
  t.equal(cut(`${'../'.repeat(30_000)}`), 'file')
  t.equal(truncateText('aé\u{1f600}b', 3), 'aé')
  t.equal(truncateText('aé\u{1f600}b', 6), 'aé')
  t.equal(truncateText('aé\u{1f600}b', 7), 'aé\u{1f600}')
  t.equal(extensionOf('a.tar.GZ. '), 'gz')
  t.equal(extensionOf('a.b c'), '')
  t.equal(extensionOf('none'), '')
  t.equal(extensionOf('...'), '')
  t.end()
})

t.test('no name in a form holds others up', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  for (const run of ['x', '\u0301\u0316', '\u{1f600}', '.a', ' ']) {
    const elapsed = stopwatch()
    const reply = await acme.send(fileForm('hello', `${run.repeat(30_000)}.txt`))
    const ms = elapsed()
    t.ok([201, 400, 415].includes(reply.statusCode), `${JSON.stringify(run)}: ${reply.statusCode}`)
    // this took seconds when the whole text was read again for each removed character
    t.ok(ms < 2000, `${ms.toFixed()} ms`)
  }
  const long = await acme.send(fileForm('hello', `${'x'.repeat(5000)}.txt`))
  t.match(long.json(), { name: `${'x'.repeat(251)}.txt`, content_type: 'text/plain' })
})

t.test('no body of JSON holds others up', async (t) => {
  const app = await startApp(t)
  for (const run of [...pieces.slice(-30), '\u0301\u0316']) {
    const text = filled(run).slice(0, 20_000)
    const elapsed = stopwatch()
    const reply = await app.inject(post('/auth/login', { email: `a@${text}`, password: text, tenant: text }))
    t.ok([400, 413].includes(reply.statusCode), `${JSON.stringify(run)}: ${reply.statusCode}`)
    t.ok(elapsed() < 2000)
  }
})
