import { writeFileSync } from 'node:fs'
import { serveJobs } from '../subprocesses/job-loop.ts'
import { type DecoderJob, type DecoderResult, niceness } from './decoders.ts'
import { decodeImage } from './image-decoding.ts'
import { detectFileType } from './magic-numbers.ts'

/*
 * The subprocess that decodes untrusted bytes. Its parent checks the memory and CPU that it uses.
 */

try {
  // when memory runs out, the kernel kills this process before any that serves requests
  writeFileSync('/proc/self/oom_score_adj', '1000')
} catch {
  // not Linux: the parent checks the memory in any case
}
serveJobs<DecoderJob, DecoderResult>(
  async (job) => ('image' in job ? decodeImage(job.image) : detectFileType(job.head)),
  niceness[process.argv[2] as keyof typeof niceness]
)
