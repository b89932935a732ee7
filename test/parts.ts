import { accessSync, constants } from 'node:fs'
import { delimiter, join } from 'node:path'

/*
 * Finds programs and data that some tests need and npm does not install. `.ci/run` installs all of them.
 */

const cache = join(import.meta.dirname, '..', 'node_modules', '.cache')
const folder = join(cache, 'parts')

export type Part = {
  path: string
  /** The `skip` option of tap: false, or the reason why the test is skipped. */
  skip: false | string
}

/**
 * Finds a program in the folders of `.ci/run`, or else in PATH. If CI is "true", a program that is missing is an error.
 * A program that has to be compiled may be missing, because not every machine has the compiler.
 */
export function findProgram(name: string, { compiled = false } = {}): Part {
  return find(name, placesOf(name), constants.X_OK, { mayMiss: compiled })
}

function placesOf(program: string): string[] {
  const folders = [join(folder, 'bin'), join(cache, program), ...(process.env.PATH ?? '').split(delimiter)]
  return folders.map((each) => join(each, program))
}

/** Finds a tool of PostgreSQL 16, such as pg_dump. Those of the system may be older than the server, and then refuse it. */
export function findPostgresTool(name: string): Part {
  return find(`${name} of PostgreSQL 16`, [join(folder, 'postgresql', 'bin', name)], constants.X_OK)
}

/** Finds the JSON schema of compose files in the package check-jsonschema. */
export function findComposeSchema(): Part {
  const path = join(folder, 'check_jsonschema', 'builtin_schemas', 'vendor', 'compose-spec.json')
  return find('the compose schema', [path], constants.R_OK)
}

/** Finds the JSON schemas of one version of Kubernetes in the package kubernetes-validate. */
export function findKubernetesSchemas(version: string): Part {
  const path = join(folder, 'kubernetes_validate', 'kubernetes-json-schema', `v${version}-local-strict`)
  return find(`the schemas of Kubernetes ${version}`, [path], constants.R_OK)
}

/** Finds libfaketime, which changes the clock of a process (LD_PRELOAD). */
export function findFakeClock(): Part {
  const folders = ['/usr/lib/x86_64-linux-gnu', '/usr/lib/aarch64-linux-gnu', '/usr/lib', '/usr/local/lib']
  return find(
    'libfaketime',
    folders.map((each) => join(each, 'faketime', 'libfaketime.so.1')),
    constants.R_OK
  )
}

/** Finds a package of bench/, which has its own node_modules. */
export function findBenchPackage(name: string): Part {
  const path = join(import.meta.dirname, '..', 'bench', 'node_modules', name, 'package.json')
  return find(`${name} of bench/`, [path], constants.R_OK)
}

function find(name: string, candidates: string[], mode: number, { mayMiss = false } = {}): Part {
  const path = candidates.find((candidate) => isAccessible(candidate, mode))
  if (path !== undefined) return { path, skip: false }
  const reason = `${name} is not on this machine; .ci/run installs it`
  if (process.env.CI === 'true' && !mayMiss) throw new Error(reason)
  return { path: '', skip: reason }
}

function isAccessible(path: string, mode: number): boolean {
  try {
    accessSync(path, mode)
    return true
  } catch {
    return false
  }
}
