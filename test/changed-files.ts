import { execFileSync } from 'node:child_process'
import { existsSync, globSync, readFileSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'
import posix from 'node:path/posix'
import { importsOf } from './imports.ts'

/*
 * Which tests a change can have touched, read from the sources: no run has to be recorded before.
 */

const root = join(import.meta.dirname, '..')
/** Programs that tests start. A test that names one needs all that the program imports. */
const programs = ['src/server.ts', ...globSync('src/cli/*.ts', { cwd: root })]
/** Names under which tests know these programs: see test/harness.ts, test/stand.ts and test/cluster.ts. */
const starters = /\b(?:serverFile|commandFile|startServer|startStand|startCluster|copySources)\b|src\/(?:server|cli)\b/

/** Paths of files that differ from a commit, from the root. Files that git does not know yet are among them. */
export function changedSince(commit: string): string[] {
  const git = (...args: string[]) => execFileSync('git', args, { cwd: root, encoding: 'utf8' }).split('\0')
  const paths = [
    ...git('diff', '--name-only', '--no-renames', '-z', commit, '--'),
    ...git('ls-files', '--others', '--exclude-standard', '-z')
  ]
  return [...new Set(paths)].filter((path) => path !== '')
}

/** A file with all files that it imports, directly or through others. */
function withImports(file: string, found = new Set<string>()): Set<string> {
  if (found.has(file) || !existsSync(join(root, file))) return found
  found.add(file)
  for (const imported of importedBy(file)) withImports(imported, found)
  return found
}

const texts = new Map<string, string>()
const imports = new Map<string, string[]>()

function readSource(file: string): string {
  const text = texts.get(file) ?? readFileSync(join(root, file), 'utf8')
  texts.set(file, text)
  return text
}

/** The files of the repository that a file imports, as paths from the root. */
function importedBy(file: string): string[] {
  const known = imports.get(file)
  if (known || !file.endsWith('.ts')) return known ?? []
  const specifiers = importsOf(readSource(file)).map(({ specifier }) => specifier)
  const paths = specifiers.filter((each) => each.startsWith('.')).map((each) => posix.join(posix.dirname(file), each))
  imports.set(file, paths)
  return paths
}

/**
 * The tests that a change of these files can have touched: those that import one, that start a program which imports
 * one, or whose sources name one or its folder in quotes. A name may be in quotes for another reason, so there can be
 * too many tests, and not too few.
 */
export function testsTouchedBy(changed: string[]): string[] {
  const served = new Set(programs.flatMap((program) => [...withImports(program)]))
  const migrations = globSync('db/migrations/*.ts', { cwd: root })
  for (const migration of migrations) served.add(migration)
  const names = new Set(changed.flatMap((path) => [path, basename(path), ...foldersOf(path)]))

  return globSync('test/*.test.ts', { cwd: root })
    .filter((test) => {
      const imported = withImports(test)
      const sources = [...imported].filter((file) => file.startsWith('test/')).map(readSource)
      // every database of the tests is made by the migrations
      const needed = sources.some((text) => starters.test(text))
        ? imported.union(served)
        : imported.union(new Set(migrations))
      return changed.some((path) => needed.has(path)) || sources.some((text) => namesOneOf(text, names))
    })
    .sort()
}

/** The folders above a file, the root not among them. */
function foldersOf(path: string): string[] {
  const folder = dirname(path)
  return folder === '.' ? [] : [folder, ...foldersOf(folder)]
}

function namesOneOf(text: string, names: Set<string>): boolean {
  for (const [, quoted = ''] of text.matchAll(/['"`]([\w./-]+)['"`]/g)) if (names.has(quoted)) return true
  return false
}
