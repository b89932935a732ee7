/** Texts by people, and dates, in the form in which the sentences of a mail contain them. */
export type AccountWords = Record<
  'name' | 'agency' | 'domain' | 'person' | 'provider' | 'from' | 'moment' | 'device',
  string
>

export type AccountTexts = {
  subject: (words: AccountWords) => string
  paragraphs: (words: AccountWords) => string[]
  footer: string
}

/**
 * The kinds of mails that only tell a person what happened to their account, or to the agency that they run. `address_taken` goes to whoever has an
 * address that somebody else wants to have, instead of a link.
 *
 * A new kind needs its texts in each language, and a call of `queueNotice` or `queueAgencyNotice` in the transaction of the change.
 */
export const noticeKinds = [
  'address_taken',
  'break_glass_used',
  'domain_lost',
  'email_changed',
  'factor_enabled',
  'factor_removed',
  'identity_linked',
  'identity_unlinked',
  'new_device',
  'passkey_added',
  'passkey_refused',
  'passkey_removed',
  'password_changed',
  'recovery_code_used',
  'recovery_codes_renewed',
  'totp_removed',
  'webhook_disabled'
] as const
export type NoticeKind = (typeof noticeKinds)[number]
