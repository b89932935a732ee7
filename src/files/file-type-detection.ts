import { fileTypeFromBuffer } from 'file-type'

/** What the first bytes of a file say of its type. What the library can't read is of no type that it knows. */
export async function detectFileType(head: Uint8Array): Promise<string | undefined> {
  const found = await fileTypeFromBuffer(head).catch(() => undefined)
  return found?.mime
}
