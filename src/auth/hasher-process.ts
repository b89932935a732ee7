import { serveJobs } from '../subprocesses/job-loop.ts'
import { compute } from './hasher.ts'

/*
 * The subprocess that hashes passwords for its parent.
 *
 * Its niceness is 10, of 0 to 19: on a core that other processes want too it gets a tenth of the time. With 19 it would
 * get a seventieth, and nobody could sign in on a fully busy machine.
 */
serveJobs(compute, 10)
