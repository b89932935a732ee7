import type { Locale } from './layout.ts'
import type { AccountTexts, NoticeKind } from './notices.ts'
import { englishNotices } from './notices-en.ts'
import { portugueseNotices } from './notices-pt-br.ts'

export const noticeTexts: Record<Locale, Record<NoticeKind, AccountTexts>> = {
  en: englishNotices,
  'pt-BR': portugueseNotices
}
