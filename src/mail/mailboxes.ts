import { fullFormats } from 'ajv-formats/dist/formats.js'

/**
 * Returns one spelling for all addresses of the same mailbox, for limits: without the part from a plus sign on, and for
 * Gmail without dots. It is only counted by, and no mail is sent to it.
 */
export function mailboxOf(email: string): string {
  const at = email.lastIndexOf('@')
  const [name = ''] = email.slice(0, at).split('+')
  const domain = email.slice(at + 1)
  const isGmail = domain === 'gmail.com' || domain === 'googlemail.com'
  return isGmail ? `${name.replaceAll('.', '')}@gmail.com` : `${name}@${domain}`
}

/**
 * Returns the form in which an address is stored and looked up. Its schema allows only ASCII, so each address has one
 * form.
 */
export function normalizeEmail(email: string): string {
  return email.normalize('NFKC').toLowerCase()
}

const maxEmailLength = 254

/**
 * Returns an address that somebody else has sent as it is stored, or undefined when it is none. It obeys the same rules as
 * the addresses in requests.
 */
export function readEmail(text: string | null): string | undefined {
  if (text === null || text.length > maxEmailLength) return undefined
  return (fullFormats.email as RegExp).test(text) ? normalizeEmail(text) : undefined
}
