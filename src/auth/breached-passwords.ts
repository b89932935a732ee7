import { createHash } from 'node:crypto'

/** The service gets this many hex digits of the 40 of a hash. Hundreds of passwords share them, so it learns none. */
const prefixLength = 5
/** The longest time that a new password waits for the service. */
export const lookupTimeoutMs = 2000
/** A padded answer of the public service has about 60 KB. */
const maxAnswerBytes = 1024 * 1024

/**
 * Asks a service that knows passwords from breaches whether a password is among them, by k-anonymity: `url` followed by
 * the first five hex digits of the password's SHA-1 gives the rest of all hashes that begin so, one `<rest>:<count>` a
 * line. It is the interface of Have I Been Pwned (https://haveibeenpwned.com/API/v3#PwnedPasswords), which can be
 * mirrored. With padding, so that the length of the answer tells nothing; padded lines have the count 0.
 *
 * Rejects when the service does not answer in time, or answers with something else.
 */
export async function isBreached(url: string, password: string): Promise<boolean> {
  const hash = createHash('sha1').update(password.normalize('NFKC')).digest('hex').toUpperCase()
  const reply = await fetch(url + hash.slice(0, prefixLength), {
    headers: { 'add-padding': 'true', 'user-agent': 'aggios-api' },
    // another address could be anywhere
    redirect: 'error',
    signal: AbortSignal.timeout(lookupTimeoutMs)
  })
  if (reply.status !== 200) {
    await reply.body?.cancel()
    throw new Error(`the service of breached passwords answered ${reply.status}`)
  }
  const lines = await readLines(reply)
  if (!lines.every((line) => /^[0-9A-F]{35}:\d+$/i.test(line))) {
    throw new Error('the service of breached passwords answered with something else than a range')
  }
  const rest = hash.slice(prefixLength)
  return lines.some((line) => {
    const [suffix = '', count] = line.split(':')
    return suffix.toUpperCase() === rest && count !== '0'
  })
}

async function readLines(reply: Response): Promise<string[]> {
  const chunks: Uint8Array[] = []
  let size = 0
  for await (const chunk of reply.body ?? []) {
    size += chunk.length
    if (size > maxAnswerBytes) throw new Error('the service of breached passwords answers without end')
    chunks.push(chunk)
  }
  const text = Buffer.concat(chunks).toString('latin1')
  return text.split(/\r?\n/).filter((line) => line !== '')
}
