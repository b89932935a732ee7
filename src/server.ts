import { enableCompileCache } from 'node:module'
import { join } from 'node:path'

/*
 * The entry point. What Node has compiled once, it reads from a folder beside the packages at the next start, which takes a
 * quarter less time then; where it can't write there, it compiles as ever.
 */

const folder = join(import.meta.dirname, '..', 'node_modules', '.cache', 'compiled')
enableCompileCache(folder)
// for the workers
process.env.NODE_COMPILE_CACHE ??= folder

// all that it is told comes by settings; what is told otherwise is named instead of being passed over
if (process.argv.length > 2) {
  const { createCommand, readOptions } = await import('./cli/command.ts')
  const help = '\nSettings are environment variables, or lines of .env: .env.example lists all with their defaults.'
  readOptions(createCommand('start', 'Serves the API.').addHelpText('after', help))
}

// not a static import: those are compiled before anything here runs
await import('./main.ts')
