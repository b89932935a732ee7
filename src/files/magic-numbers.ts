import { fileTypeFromBuffer } from 'file-type'

/**
 * Detects the media type of a file by its first bytes. Resolves to undefined for an unknown type and for bytes that
 * can't be read.
 */
export async function detectFileType(head: Uint8Array): Promise<string | undefined> {
  const found = await fileTypeFromBuffer(head).catch(() => undefined)
  return found?.mime
}
