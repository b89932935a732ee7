import { existsSync, readdirSync } from 'node:fs'
import { dirname, join, relative } from 'node:path'
import t from 'tap'
import { readText, root } from './harness.ts'

/*
 * What the pages point at is there: files, headings, commands, settings. And the drawing of a request's way is that of src/app.ts.
 */

const markdownIn = (folder: string) => readdirSync(join(root, folder)).filter((name) => name.endsWith('.md'))
const pages = [...markdownIn('.'), ...markdownIn('docs').map((name) => `docs/${name}`)]

/** As the forges make them: lower case, no punctuation, hyphens for blanks. */
const anchorOf = (heading: string) =>
  heading
    .toLowerCase()
    .replaceAll(/[^\w\s-]/g, '')
    .trim()
    .replaceAll(' ', '-')
const anchorsOf = (text: string) => [...text.matchAll(/^#+ (.+)$/gm)].map(([, heading = '']) => anchorOf(heading))

t.test('every link leads somewhere', async (t) => {
  for (const page of pages) {
    for (const [, target = '', anchor] of readText(page).matchAll(/\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)/g)) {
      const file = target === '' ? page : relative(root, join(root, dirname(page), target))
      t.ok(existsSync(join(root, file)), `${page}: ${target}`)
      if (anchor !== undefined) t.ok(anchorsOf(readText(file)).includes(anchor), `${page}: ${target}#${anchor}`)
    }
  }
})

t.test('every page is on the way in', async (t) => {
  const way = readText('docs/README.md')
  for (const page of markdownIn('docs').filter((name) => name !== 'README.md')) t.ok(way.includes(`(${page})`), page)
})

t.test('every file that is named exists', async (t) => {
  // CONTRIBUTING.md also names what its walk makes, which has a test of its own
  for (const page of pages.filter((each) => each !== 'CONTRIBUTING.md')) {
    for (const [, path = ''] of readText(page).matchAll(
      /`((?:src|plugins|routes|db|test|bench|client)\/\w[\w./-]*)`/g
    )) {
      t.ok(existsSync(join(root, path)), `${page}: ${path}`)
    }
  }
})

t.test('every script that is named exists', async (t) => {
  const { scripts } = JSON.parse(readText('package.json')) as { scripts: Record<string, string> }
  for (const page of pages) {
    for (const [, script = ''] of readText(page).matchAll(/npm run ([a-z:]+)/g))
      t.ok(script in scripts, `${page}: ${script}`)
  }
})

t.test('the drawing of a request has its parts in the order of src/app.ts', async (t) => {
  const [, drawing = ''] = /## The way of a request\n.*?```\n(.*?)```/s.exec(readText('docs/architecture.md')) ?? []
  const registered = [...readText('src/app.ts').matchAll(/^ {2}app\.register\((\w+)/gm)].map(([, name]) => name)
  const [hooks = ''] = drawing.split('the guard of the route')
  const drawn = [...hooks.matchAll(/^(\w+) {2,}/gm)].map(([, name]) => name).filter((name) => registered.includes(name))
  t.strictSame(drawn, ['headers', 'requestBody', 'authentication', 'limits', 'hosts', 'cors'])
  t.strictSame(
    drawn,
    registered.filter((name) => drawn.includes(name))
  )
})

t.test('what is drawn of the guard is what may be answered', async (t) => {
  const catalogue = readText('src/http/problems.ts')
  const [, drawing = ''] = /## The way of a request\n.*?```\n(.*?)```/s.exec(readText('docs/architecture.md')) ?? []
  const codes = [...drawing.matchAll(/\b[a-z]+(?:_[a-z]+)+\b/g)].map(([code]) => code)
  t.ok(codes.length > 8)
  for (const code of codes) t.ok(catalogue.includes(`'${code}'`), code)
})
