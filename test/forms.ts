import { readdirSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { copyMarkKey, markKey } from '../src/files/store/keys.ts'
import { allRows, type Tenant, type TestApp } from './harness.ts'

export type FormPart = { name: string; filename?: string; type?: string; content: Buffer | string }
export type FileReply = {
  id: string
  name: string
  purpose: string | null
  content_type: string
  size: number
  sha256: string
  created_by: string | null
  created_at: string
}

export const boundary = 'boundaryOfTheTests'

/** The body and headers of a multipart form. */
export function form(parts: FormPart[]) {
  const chunks = parts.flatMap(({ name, filename, type, content }) => {
    const named = filename === undefined ? '' : `; filename="${filename}"`
    const typed = type === undefined ? '' : `Content-Type: ${type}\r\n`
    return [
      Buffer.from(`--${boundary}\r\nContent-Disposition: form-data; name="${name}"${named}\r\n${typed}\r\n`),
      Buffer.from(content),
      Buffer.from('\r\n')
    ]
  })
  return {
    payload: Buffer.concat([...chunks, Buffer.from(`--${boundary}--\r\n`)]),
    headers: { 'content-type': `multipart/form-data; boundary=${boundary}` }
  }
}

/** A request that uploads a file. */
export function fileForm(content: Buffer | string, filename = 'notes.txt', type = 'text/plain', more: FormPart[] = []) {
  const parts = [{ name: 'file', filename, type, content }, ...more]
  return { method: 'POST', url: '/api/v1/files', ...form(parts) } as const
}

/** Uploads a file, as the owner of the agency or with another token. */
export async function createFile(
  tenant: Tenant,
  content: Buffer | string,
  filename?: string,
  type?: string,
  { purpose, token }: { purpose?: string; token?: string } = {}
): Promise<FileReply> {
  const more = purpose === undefined ? [] : [{ name: 'purpose', content: purpose }]
  const request = fileForm(content, filename, type, more)
  const reply = await (token === undefined ? tenant.send(request) : tenant.with(token, request))
  if (reply.statusCode !== 201) throw new Error(`${reply.statusCode} ${reply.body}`)
  return reply.json()
}

/**
 * The objects of the disk store with their sizes, without its mark, and the files of uploads that were never finished.
 */
export function storedObjects(app: TestApp): { objects: Map<string, number>; unfinished: string[] } {
  const folder = join(app.config.dataDir, 'files')
  const objects = new Map<string, number>()
  for (const entry of readdirSync(join(folder, 'objects'), { recursive: true, withFileTypes: true })) {
    if (!entry.isFile()) continue
    const path = join(entry.parentPath, entry.name)
    const key = path.slice(join(folder, 'objects').length + 1)
    if (key !== markKey && key !== copyMarkKey) objects.set(key, statSync(path).size)
  }
  const unfinished = readdirSync(folder).includes('unfinished') ? readdirSync(join(folder, 'unfinished')) : []
  return { objects, unfinished }
}

/**
 * Compares the rows, the objects and the counted bytes of an agency, without its images. Returns what does not match:
 * nothing, unless something is lost or left over.
 */
export async function disagreements(app: TestApp, tenant: { id: string }): Promise<string[]> {
  const rows = await allRows(
    app.database,
    'select id, status, size::float8 as size from files where tenant_id = $1 order by id',
    [tenant.id]
  )
  const [usage] = await allRows(app.database, 'select bytes::float8 as bytes from storage_usage where tenant_id = $1', [
    tenant.id
  ])
  const { objects, unfinished } = storedObjects(app)
  const own = [...objects].filter(([key]) => key.startsWith(tenant.id) && !key.includes('/images/'))
  const byKey = new Map(rows.map((row) => [`${tenant.id}/files/${row.id}`, row]))
  const sum = rows.reduce((all, { size }) => all + size, 0)
  const counted = usage?.bytes ?? 0
  return [
    ...rows.filter(({ status }) => !['ready', 'deleted'].includes(status)).map((row) => `a ${row.status} row`),
    ...own.filter(([key, size]) => byKey.get(key)?.size !== size).map(([key]) => `no row for ${key}`),
    ...[...byKey.keys()].filter((key) => !objects.has(key)).map((key) => `no object for ${key}`),
    ...(counted === sum ? [] : [`${counted} bytes are counted and ${sum} are there`]),
    ...unfinished.map((name) => `${name} was never finished`)
  ]
}

/** An image of one pixel, as a PNG. */
export const onePixel = Buffer.from(
  'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==',
  'base64'
)

/** Makes the sweep of the object store due, and runs it. */
export async function sweep(app: TestApp): Promise<void> {
  await allRows(app.database, 'update object_sweep set due_at = now()')
  await app.objectSweep.run()
}
