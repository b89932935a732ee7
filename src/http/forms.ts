import { StoreFailure } from '../files/store/object-store.ts'
import { malformedRequest, Problem } from './problems.ts'

/** What can't be read is the sender's mistake, unless it is known to be something else. */
export async function readable<T>(read: () => Promise<T>): Promise<T> {
  try {
    return await read()
  } catch (err) {
    if (err instanceof Problem || err instanceof StoreFailure) throw err
    throw malformedRequest({ detail: 'the form can not be read', cause: err })
  }
}
