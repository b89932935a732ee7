import type { Tenant } from './harness.ts'

/** Sends a file in pieces, each in a request of its own. Resolves to its id. */
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
