import type { FastifyRequest } from 'fastify'
import { type FileRow, readFile, readLinkedFile } from '../../db/queries/files.ts'
import type { FileLink } from '../../src/files/file-links.ts'
import { notFound } from '../../src/http/problems.ts'

/** The file as it is shown. Throws `not_found` for one that is not whole, deleted, or another agency's. */
export async function requireFile(request: FastifyRequest, id: string): Promise<FileRow> {
  const [file] = await request.tenantQuery(readFile, { tenant_id: request.user.tenant_id, id })
  if (!file) throw notFound()
  return file
}

/** The same by a link that this server issued; a suspended agency's are good for nothing. */
export async function requireLinkedFile(request: FastifyRequest, { tenant_id, id }: FileLink): Promise<FileRow> {
  const [file] = await request.tenantQuery(readLinkedFile, { tenant_id, id }, { tenant_id, user_id: null })
  if (!file) throw notFound()
  return file
}
