import { v7 as uuidv7 } from 'uuid'
import type { Role } from '../auth/roles.ts'

export type Person = { id: string; email: string; name: string; role: Role; session_id: string | null }
export type Agency = { id: string; slug: string; name: string; people: Person[] }

/** The size of a seeding: agencies, people per agency, sessions over all agencies, and the prefix of the slugs. */
export type Plan = { agencies: number; people: number; sessions: number; name: string }

/**
 * People per transaction. Each person is a separate insert, and the pool of the server cancels a statement after 3 s.
 */
const batchSize = 500

/** Generates agencies of equal size. The sessions are spread evenly over all people. */
export function* planAgencies({ agencies, people, sessions, name }: Plan): Generator<Agency> {
  const total = agencies * people
  let made = 0
  for (let number = 1; number <= agencies; number++) {
    const slug = `${name}-${number}`
    yield {
      id: uuidv7(),
      slug,
      name: `Agency ${number}`,
      people: Array.from({ length: people }, (_, index) => {
        const position = made++
        const signedIn = Math.floor(((position + 1) * sessions) / total) > Math.floor((position * sessions) / total)
        return {
          id: uuidv7(),
          email: `user${index + 1}@${slug}.example`,
          name: `User ${index + 1} of ${slug}`,
          role: index === 0 ? 'owner' : index === 1 ? 'admin' : 'member',
          session_id: signedIn ? uuidv7() : null
        }
      })
    }
  }
}

/** Groups agencies into batches for one transaction each. */
export function* inBatches(agencies: Iterable<Agency>): Generator<Agency[]> {
  let batch: Agency[] = []
  let people = 0
  for (const agency of agencies) {
    batch.push(agency)
    people += agency.people.length
    if (people < batchSize) continue
    yield batch
    batch = []
    people = 0
  }
  if (batch.length > 0) yield batch
}
