import { createHash } from 'node:crypto'
import { once } from 'node:events'
import http from 'node:http'
import { buffer } from 'node:stream/consumers'
import { pipeline } from 'node:stream/promises'
import { mebibyte } from './bytes.ts'

/*
 * Files too large for memory. They are generated and checked as a stream, for test/large-files.test.ts and for `npm run
 * bench`, which measures their speed.
 */

/** The content repeats this block, so that generating it costs little. It begins like no known type of file. */
const block = Buffer.alloc(mebibyte, 'nothing that anybody knows ')

export function* content(mebibytes: number) {
  for (let count = 0; count < mebibytes; count++) yield block
}

/** The SHA-256 of this many mebibytes of content, in hex. */
export function contentSum(mebibytes: number): string {
  const hash = createHash('sha256')
  for (const each of content(mebibytes)) hash.update(each)
  return hash.digest('hex')
}

/** A client that uploads, downloads and removes files, with these headers. */
export function createFileClient(port: number, headers: { host: string; authorization: string }) {
  const request = (method: string, path: string, more = {}) =>
    http.request({ port, path: `/api/v1/files${path}`, method, headers: { ...headers, ...more } })
  const answer = async (sent: http.ClientRequest) => (await once(sent, 'response')) as [http.IncomingMessage]

  return {
    /** Resolves to the file's id. */
    async upload(mebibytes: number): Promise<string> {
      const opening = Buffer.from('--b\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n\r\n')
      const closing = Buffer.from('\r\n--b--\r\n')
      const sent = request('POST', '', {
        'content-type': 'multipart/form-data; boundary=b',
        'content-length': opening.length + mebibytes * mebibyte + closing.length
      })
      const answered = answer(sent)
      async function* body() {
        yield opening
        yield* content(mebibytes)
        yield closing
      }
      await pipeline(body, sent)
      const [reply] = await answered
      const text = String(await buffer(reply))
      if (reply.statusCode !== 201) throw new Error(`${reply.statusCode} ${text}`)
      return JSON.parse(text).id
    },
    /** Resolves to the SHA-256 of the content. */
    async download(file: string): Promise<string> {
      const sent = request('GET', `/${file}/content`)
      sent.end()
      const [reply] = await answer(sent)
      const hash = createHash('sha256')
      for await (const chunk of reply) hash.update(chunk)
      return hash.digest('hex')
    },
    async remove(file: string): Promise<void> {
      const sent = request('DELETE', `/${file}?permanent=true`)
      sent.end()
      const [reply] = await answer(sent)
      await buffer(reply)
    }
  }
}
