import { argon2 } from '../../src/auth/argon2.ts'

/* Hashes in the serving process. Stands in for src/auth/hasher.ts in a copy of the product. */

export const createHasher = () => ({ hash: argon2.hash, verify: argon2.verify, close() {} })
