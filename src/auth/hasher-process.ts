import { serveJobs } from '../subprocesses/job-loop.ts'
import { compute } from './hasher.ts'

/*
 * Hashes what the process that started it sends.
 *
 * Its niceness, of 0 to 19, means a tenth of the time where a core is wanted by others too. 19 would be a seventieth, and on a
 * machine that is full nobody could sign in.
 */
serveJobs(compute, 10)
