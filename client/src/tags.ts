import type { Send } from './retries.js'
import type { paths } from './schema.js'
import type { TokenStore } from './stores.js'

/** The reads that a server may answer from its memory. A change answers with the same body. */
const kept: readonly string[] = ['/api/v1/users/me', '/api/v1/tenant'] satisfies (keyof paths)[]

type Reply = { etag: string; body: string; headers: Headers }

/**
 * Keeps the newest replies to these reads, and to changes of what they show, and asks with their tags. So a change by this client
 * is shown by the next read, whichever process answers it, and what has not changed is not sent again.
 *
 * The replies are forgotten at the next sign-in: two people may have the same tag.
 */
export function withTags(send: Send, store: TokenStore): Send {
  const replies = new Map<string, Reply>()
  let signIn: string | undefined
  let changes = 0

  async function isSameSignIn(): Promise<boolean> {
    const current = (await store.read())?.signIn
    if (current === signIn && current !== undefined) return true
    replies.clear()
    signIn = current
    return false
  }

  async function keep(path: string, response: Response): Promise<void> {
    const etag = response.headers.get('etag')
    if (!response.ok || etag === null) return
    replies.set(path, { etag, body: await response.clone().text(), headers: response.headers })
  }

  async function read(path: string, request: Request): Promise<Response> {
    const reply = replies.get(path)
    const before = changes
    const asked = request.clone()
    if (reply) asked.headers.set('if-none-match', reply.etag)
    const response = await send(asked)
    const same = await isSameSignIn()
    if (response.status === 304 && reply) {
      return same ? new Response(reply.body, { status: 200, headers: reply.headers }) : send(request)
    }
    // the reply to a change that came meanwhile is the newer one
    if (same && before === changes) await keep(path, response)
    return response
  }

  async function change(path: string, request: Request): Promise<Response> {
    const response = await send(request)
    changes++
    if (await isSameSignIn()) await keep(path, response)
    return response
  }

  return async (request) => {
    const path = new URL(request.url).pathname
    if (!kept.includes(path) || request.headers.has('authorization')) return send(request)
    await isSameSignIn()
    if (signIn === undefined) return send(request)
    if (request.method === 'PATCH') return change(path, request)
    const asks = request.headers.has('if-none-match') || request.headers.has('cache-control')
    return request.method === 'GET' && !asks ? read(path, request) : send(request)
  }
}
