import type { FastifyRequest } from 'fastify'
import { type FileRow, readFile, readLinkedFile } from '../../db/queries/files.ts'
import type { FileLink } from '../../src/files/file-links.ts'
import { notFound } from '../../src/http/problems.ts'

/**
 * Reads a file of the caller's agency. Throws `not_found` for a file that is unfinished, deleted, or of another agency.
 */
export async function requireFile(request: FastifyRequest, id: string): Promise<FileRow> {
  const [file] = await request.tenantQuery(readFile, { tenant_id: request.user.tenant_id, id })
  if (!file) throw notFound()
  return file
}

/** Reads the file of a signed link. Throws `not_found` also when the agency is suspended. */
export async function requireLinkedFile(request: FastifyRequest, { tenant_id, id }: FileLink): Promise<FileRow> {
  const [file] = await request.tenantQuery(readLinkedFile, { tenant_id, id }, { tenant_id, user_id: null })
  if (!file) throw notFound()
  return file
}
