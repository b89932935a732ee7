import { createHash } from 'node:crypto'

export const mebibyte = 1024 * 1024

export const sha256 = (content: string | Buffer) => createHash('sha256').update(content).digest('hex')

export const kibibyte = 1024
