import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { asvs10 } from './asvs-requirements.ts'
import { root } from './harness.ts'
import { type Requirement, rfc9700 } from './oauth-requirements.ts'

/*
 * The page docs/oauth-requirements.md. `node test/oauth-requirements-page.ts` writes it, and a test compares it.
 */

export const pagePath = 'docs/oauth-requirements.md'

const cell = (text: string) => text.replaceAll('|', '\\|')

function evidence(requirement: Requirement): string {
  if ('shown' in requirement) {
    return requirement.shown.map(([file, title]) => `\`${file.replace('test/', '')}\`: ${title}`).join('<br>')
  }
  return `${requirement.concerns === 'nobody' ? 'Does not concern the product' : 'Not met'}. ${requirement.why}`
}

const table = (requirements: readonly Requirement[]) =>
  [
    '| point | what it demands | where it is shown |',
    '| --- | --- | --- |',
    ...requirements.map((each) => `| ${each.id} | ${cell(each.demands)} | ${cell(evidence(each))} |`)
  ].join('\n')

export const renderPage = () => `# What OAuth asks of the product

The product signs people in at providers, where it is the client. Towards its own pages and apps it is an authorization server
that knows one grant, and a resource server. Two documents say what each of these must do: RFC 9700, Best Current Practice for
OAuth 2.0 Security, and chapter 10 of the OWASP Application Security Verification Standard 5.0.0. This page goes through both,
point by point, in words of our own. Every test that it names is a file in \`test/\`.

It is made from \`test/oauth-requirements.ts\` and \`test/asvs-requirements.ts\`: change these, then run
\`node test/oauth-requirements-page.ts\`.
\`test/oauth-requirements.test.ts\` makes sure that no point is missing and that each test is there.

## RFC 9700

A letter tells the recommendations of one section apart.

${table(rfc9700)}

## ASVS 5.0.0, chapter 10

${table(asvs10)}
`

if (import.meta.main) writeFileSync(join(root, pagePath), renderPage())
