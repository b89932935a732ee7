/** How an address is stored and looked up. Its schema lets ASCII through only, so this is one spelling for each mailbox. */
export function normalizeEmail(email: string): string {
  return email.normalize('NFKC').toLowerCase()
}
