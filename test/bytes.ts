import { createHash, randomBytes } from 'node:crypto'

export const mebibyte = 1024 * 1024

export const sha256 = (content: string | Buffer) => createHash('sha256').update(content).digest('hex')

export const kibibyte = 1024

/**
 * Random content for an upload. It begins with zeros, because two random bytes can be those of a program (`MZ`, `#!`),
 * which the product refuses: one file in 32,768.
 */
export const opaqueBytes = (length: number) => randomBytes(length).fill(0, 0, 16)
