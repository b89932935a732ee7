/*
 * Values that break parsers, for every field of every operation of an OpenAPI document.
 */

type Schema = {
  $ref?: string
  type?: string | string[]
  properties?: Record<string, Schema>
  items?: Schema
  enum?: unknown[]
  examples?: unknown[]
  format?: string
}
type Parameter = { name: string; in: 'path' | 'query' | 'header'; required?: boolean; schema: Schema }
export type Operation = {
  security?: object[]
  parameters?: Parameter[]
  requestBody?: { content: Record<string, { schema: Schema }> }
}
export type OpenApi = {
  paths: Record<string, Record<string, Operation>>
  components: { schemas: Record<string, Schema> }
}

type Attempt = { what: string; url: string; body?: unknown; headers?: Record<string, string> }

/** Texts that have broken databases, shells, templates, parsers and numbers. */
const texts = [
  ...[
    "''; drop table users; --",
    "' or '1'='1",
    "\\'; select pg_sleep(9); --",
    '$1',
    ':name',
    '%',
    '_%_',
    '$[*]',
    '$.**',
    'a.b."c"'
  ],
  ...[
    '{{7*7}}',
    '<script>',
    '../../etc/passwd',
    '\u0000',
    'a\u0000b',
    '\ud800',
    'a\ud83d',
    '\u202e',
    '\r\nX: y',
    '\u001b[31m'
  ],
  ...['', ' ', 'null', 'NaN', 'Infinity', '-1', '1e309', '-1e309', '9223372036854775808', 'x'.repeat(10_000)],
  ...['00000000-0000-0000-0000-000000000000', '2026-13-45T99:99:99Z', '*', 'W/"x"']
]
const others = [0, -1, 1.5, 2 ** 31, 2 ** 53, 9.3e18, true, null, [], {}, ['x', null], { a: { b: 1 } }]

/** Requests that put each value into each field of an operation. The other fields have their examples. */
export function attemptsOn(document: OpenApi, path: string, operation: Operation): Attempt[] {
  const parameters = operation.parameters ?? []
  const schema = operation.requestBody?.content['application/json']?.schema
  const body = schema && exampleOf(document, schema)
  const fill = (name: string, value: string) =>
    path.replaceAll(/\{(\w+)\}/g, (_, each) =>
      each === name ? value : encode(String(exampleOf(document, parameters.find((p) => p.name === each)?.schema ?? {})))
    )
  const attempts: Attempt[] = []
  for (const parameter of parameters) {
    for (const value of texts) {
      const what = `${parameter.name} = ${JSON.stringify(value).slice(0, 60)}`
      if (parameter.in === 'path') attempts.push({ what, url: fill(parameter.name, encode(value)), body })
      if (parameter.in === 'query')
        attempts.push({ what, url: `${fill('', '')}?${parameter.name}=${encode(value)}`, body })
      // a client library can't send other bytes in a header; tests with raw sockets do
      if (parameter.in === 'header' && /^[\t\x20-\x7e]*$/.test(value))
        attempts.push({ what, url: fill('', ''), body, headers: { [parameter.name]: value } })
    }
  }
  if (schema) {
    for (const field of fieldsOf(document, schema)) {
      for (const value of [...texts, ...others]) {
        const what = `${field.join('.')} = ${JSON.stringify(value).slice(0, 60)}`
        attempts.push({ what, url: fill('', ''), body: withValue(body, field, value) })
      }
    }
    for (const value of [...others, '', 'x'])
      attempts.push({ what: 'the body', url: fill('', ''), body: JSON.stringify(value) })
  }
  for (const name of ['if-match', 'if-none-match', 'idempotency-key', 'range']) {
    for (const value of ['"', '"a", W/"b"', "'; --", 'bytes=0-99999999999999999999']) {
      attempts.push({ what: `${name}: ${value}`, url: fill('', ''), body: schema && '{}', headers: { [name]: value } })
    }
  }
  return attempts
}

/** The request that an operation's examples make, with all query parameters. `form`: the body, if it is a form of texts. */
export function exampleRequest(
  document: OpenApi,
  path: string,
  operation: Operation
): { url: string; body?: string; form?: string } {
  const parameters = operation.parameters ?? []
  const filling = ({ schema }: Parameter) => encode(String(exampleOf(document, schema)))
  const filled = path.replaceAll(/\{(\w+)\}/g, (_, name) => {
    const parameter = parameters.find((each) => each.name === name)
    return parameter ? filling(parameter) : 'x'
  })
  const query = parameters.filter((each) => each.in === 'query').map((each) => `${each.name}=${filling(each)}`)
  const schema = operation.requestBody?.content['application/json']?.schema
  const url = query.length > 0 ? `${filled}?${query.join('&')}` : filled
  const fields = operation.requestBody?.content['application/x-www-form-urlencoded']?.schema
  return {
    url,
    ...(schema && { body: JSON.stringify(exampleOf(document, schema)) }),
    ...(fields && { form: new URLSearchParams(exampleOf(document, fields) as Record<string, string>).toString() })
  }
}

/**
 * Percent-encodes a text. One with half a surrogate pair, which encodeURIComponent refuses, becomes the bytes of
 * U+D800.
 */
function encode(value: string): string {
  return value.isWellFormed() ? encodeURIComponent(value) : '%ED%A0%80'
}

function resolve(document: OpenApi, schema: Schema): Schema {
  return schema.$ref ? (document.components.schemas[schema.$ref.split('/').at(-1) as string] as Schema) : schema
}

function exampleOf(document: OpenApi, given: Schema): unknown {
  const schema = resolve(document, given)
  if (schema.examples?.length) return schema.examples[0]
  if (schema.properties) {
    return Object.fromEntries(
      Object.entries(schema.properties).map(([name, each]) => [name, exampleOf(document, each)])
    )
  }
  if (schema.enum) return schema.enum[0]
  return [schema.type].flat().includes('integer') ? 1 : 'x'
}

function fieldsOf(document: OpenApi, given: Schema): string[][] {
  const { properties = {} } = resolve(document, given)
  return Object.entries(properties).flatMap(([name, each]) => {
    const inner = resolve(document, each)
    const deeper = fieldsOf(document, inner).map((path) => [name, ...path])
    return [[name], ...deeper, ...(inner.items ? [[name, '0']] : [])]
  })
}

function withValue(body: unknown, [name, ...rest]: string[], value: unknown): unknown {
  if (name === undefined) return value
  if (name === '0') return [value]
  const object = body as Record<string, unknown>
  return { ...object, [name]: withValue(object[name], rest, value) }
}

/** Runs `work` for every item, `width` of them at a time. */
export async function forEachConcurrently<T>(
  items: T[],
  width: number,
  work: (item: T) => Promise<void>
): Promise<void> {
  const queue = items.values()
  await Promise.all(
    Array.from({ length: width }, async () => {
      for (const item of queue) await work(item)
    })
  )
}
