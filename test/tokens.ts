import { createHmac } from 'node:crypto'
import { once } from 'node:events'
import { type AddressInfo, connect } from 'node:net'
import type { FastifyInstance } from 'fastify'
import type { Reply } from './harness.ts'

/** A JWT_SECRET that is one key. The secret of the harness contains a comma, so it is two keys. */
export const singleSecret = 'one secret of these tests with enough bytes'

/** Secrets that production accepts. */
export const strongSecret = 'k3y-0f-4t-l34st-th1rty-tw0-bytes!!'
export const otherStrongSecret = '4n0th3r-k3y-0f-th1rty-tw0-bytes!!!'

export type Json = Record<string, unknown>

/** Makes a JWT with any header, any claims and any key. */
export function makeToken(header: unknown, claims: unknown, secret: string | Buffer, digest = 'sha256'): string {
  const input = `${encode(header)}.${encode(claims)}`
  return `${input}.${createHmac(digest, secret).update(input).digest('base64url')}`
}

/** Encodes a part of a JWT. A string is taken as it is, so that a part can be something other than JSON. */
export function encode(part: unknown): string {
  return Buffer.from(typeof part === 'string' ? part : JSON.stringify(part)).toString('base64url')
}

export function decode(token: string): { header: Json; claims: Json } {
  const [header = '', claims = ''] = token.split('.')
  const read = (part: string) => JSON.parse(Buffer.from(part, 'base64url').toString())
  return { header: read(header), claims: read(claims) }
}

/** The id of the session that an access token belongs to. */
export const sidOf = ({ access_token }: { access_token: string }) => decode(access_token).claims.sid as string

export const seconds = () => Math.floor(Date.now() / 1000)

/**
 * What a client can compare of two replies. Left out are the request id, the time, and the headers of one connection.
 */
export function fingerprint(reply: Reply): object {
  const { 'x-request-id': _, date: __, connection: ___, ...headers } = reply.headers
  const body = reply.body.startsWith('{') ? { ...reply.json(), request_id: '' } : reply.body
  return { status: reply.statusCode, headers: { ...headers, 'content-length': undefined }, body }
}

export type RawReply = { status: number; text: string; body: Json }

/**
 * Writes bytes to a listening application, and reads until it closes the connection. For requests that no client
 * library sends.
 */
export async function sendRaw(app: FastifyInstance, text: string): Promise<RawReply> {
  const { port } = app.server.address() as AddressInfo
  const socket = connect(port, '127.0.0.1')
  socket.setTimeout(5000, () => socket.destroy(new Error('no answer in 5 s')))
  const chunks: Buffer[] = []
  socket.on('data', (chunk) => chunks.push(chunk))
  socket.write(Buffer.from(text, 'latin1'))
  await once(socket, 'close')
  const reply = Buffer.concat(chunks).toString()
  const body = reply.slice(reply.indexOf('\r\n\r\n') + 4)
  return { status: Number(reply.split(' ')[1]), text: reply, body: body.startsWith('{') ? JSON.parse(body) : {} }
}

/** The head of a request, given line by line. It asks the server to close the connection after its answer. */
export function rawRequest(line: string, ...headers: string[]): string {
  return `${[line, ...headers, 'Connection: close'].join('\r\n')}\r\n\r\n`
}
