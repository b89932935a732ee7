import { malformedRequest, Problem } from '../http/problems.ts'
import { StoreFailure } from './store/object-store.ts'

/**
 * Runs a read of a multipart form. A parser's error becomes `malformed_request`; problems and failures of the store
 * stay.
 */
export async function readFormData<T>(read: () => Promise<T>): Promise<T> {
  try {
    return await read()
  } catch (err) {
    if (err instanceof Problem || err instanceof StoreFailure) throw err
    throw malformedRequest({ detail: 'the form can not be read', cause: err })
  }
}
