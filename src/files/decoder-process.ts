import { writeFileSync } from 'node:fs'
import { serveJobs } from '../subprocesses/job-loop.ts'
import { type DecoderJob, type DecoderResult, niceness } from './decoders.ts'
import { detectFileType } from './file-type-detection.ts'
import { decodeImage } from './image-decoding.ts'

/*
 * Reads the bytes of strangers for the process that started it, which watches what it uses.
 */

try {
  // where memory ends, this process goes before any that serves
  writeFileSync('/proc/self/oom_score_adj', '1000')
} catch {
  // no Linux: memory is watched all the same
}
serveJobs<DecoderJob, DecoderResult>(
  async (job) => ('image' in job ? decodeImage(job.image) : detectFileType(job.head)),
  niceness[process.argv[2] as keyof typeof niceness]
)
