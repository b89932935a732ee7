/**
 * One spelling for all addresses that reach the same mailbox, to count by: without the part from a plus sign on, and at Gmail
 * without dots. No mail is sent to it.
 */
export function mailboxOf(email: string): string {
  const at = email.lastIndexOf('@')
  const [name = ''] = email.slice(0, at).split('+')
  const domain = email.slice(at + 1)
  const isGmail = domain === 'gmail.com' || domain === 'googlemail.com'
  return isGmail ? `${name.replaceAll('.', '')}@gmail.com` : `${name}@${domain}`
}

/** How an address is stored and looked up. Its schema lets ASCII through only, so this is one spelling for each mailbox. */
export function normalizeEmail(email: string): string {
  return email.normalize('NFKC').toLowerCase()
}
