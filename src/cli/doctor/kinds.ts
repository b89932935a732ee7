/** `error`: something is unsafe, or does not work. `warning`: something will not work some day, or weakens the rest. */
export type Severity = 'error' | 'warning'

/** What the doctor can find. `remedy` is one command or one sentence, `docs` the page that explains it. */
export type Kind = { severity: Severity; title: string; remedy: string; docs: string }

/** A section of the manual. */
export const manual = (anchor: string) => `docs/operations.md#${anchor}`
export const error = (title: string, remedy: string, docs: string): Kind => ({ severity: 'error', title, remedy, docs })
export const warning = (title: string, remedy: string, docs: string): Kind => ({
  severity: 'warning',
  title,
  remedy,
  docs
})
