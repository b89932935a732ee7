import { sha256 } from './bytes.ts'
import type { FileReply } from './forms.ts'
import type { Tenant } from './harness.ts'

/** Uploads a file with tus, each piece in a request of its own. Resolves to the id of the file. */
export async function uploadResumably(tenant: Tenant, name: string, pieces: Buffer[]): Promise<string> {
  const size = pieces.reduce((bytes, piece) => bytes + piece.length, 0)
  const filename = Buffer.from(name).toString('base64')
  const begun = await tenant.send({
    method: 'POST',
    url: '/api/v1/files/resumable',
    headers: { 'tus-resumable': '1.0.0', 'upload-length': String(size), 'upload-metadata': `filename ${filename}` }
  })
  if (begun.statusCode !== 201) throw new Error(`${begun.statusCode} ${begun.body}`)
  const url = String(begun.headers.location)
  let offset = 0
  for (const piece of pieces) {
    const reply = await tenant.send({
      method: 'PATCH',
      url,
      headers: {
        'tus-resumable': '1.0.0',
        'upload-offset': String(offset),
        'content-type': 'application/offset+octet-stream'
      },
      payload: piece
    })
    offset += piece.length
    if (reply.headers['upload-offset'] !== String(offset)) throw new Error(`${reply.statusCode} ${reply.body}`)
  }
  return url.split('/').at(-2) as string
}

export const contentOf = (file: { id: string }) => `/api/v1/files/${file.id}/content`

/** The names of all files that a query lists, from all pages. */
export async function listNames(tenant: Tenant, query: Record<string, string>): Promise<string[]> {
  const names: string[] = []
  for (let cursor: string | null = ''; cursor !== null; ) {
    const parameters = new URLSearchParams({ ...query, ...(cursor && { cursor }) })
    const page: { data: FileReply[]; next_cursor: string | null } = (
      await tenant.send(`/api/v1/files?${parameters}`)
    ).json()
    names.push(...page.data.map(({ name }) => name))
    cursor = page.next_cursor
  }
  return names
}

/** The bytes that the files of an agency take, as the API shows them. */
/** The bytes that an agency stores now. The database answers, because the background work of a test changes them too. */
export async function usageOf(tenant: Tenant): Promise<number> {
  const reply = await tenant.send({ url: '/api/v1/tenant', headers: { 'cache-control': 'no-cache' } })
  return reply.json().usage.storage_bytes
}

/** The body that begins a direct upload of this content. */
export const announce = (content: Buffer | string, more = {}) => ({
  ...{ name: 'notes.txt', content_type: 'text/plain', size: Buffer.byteLength(content), sha256: sha256(content) },
  ...more
})
