/*
 * Code for the page that shows the OpenAPI document. The text of each function is sent to the browser, so a function
 * must not refer to anything outside itself.
 */

type Fields = { getIn(way: string[]): unknown; toJS(): Document }
type Operation = {
  parameters?: { name: string; in: string }[]
  responses?: Record<string, { content?: unknown; headers?: unknown }>
}
type Document = { paths: Record<string, Record<string, Operation>> }
type System = {
  authSelectors: { authorized(): Fields }
  specSelectors: { specJson(): Fields }
  specActions: {
    changeParam(operation: [path: string, method: string], name: string, where: string, value: string): void
  }
}
type Reply = { ok?: boolean; text?: unknown; headers?: Record<string, string> }
type Listed = Record<string, string> & { current?: string }
type Action<T extends unknown[]> = (...given: T) => unknown

declare const SwaggerUIBundle: { plugins: { DownloadUrl(system: unknown): object } }

/** The plugin of Swagger UI that downloads the document. A page with other plugins must name it too. */
export const downloadDocument = (system: unknown) => SwaggerUIBundle.plugins.DownloadUrl(system)

/**
 * A plugin of Swagger UI that fills the ids in paths with ids of existing objects. It takes them from lists, after
 * sign-in and after each change, and from links in replies. It does not overwrite what the user typed. Without an
 * object the field stays empty, and the page says that the field is required.
 */
export function tryItOut() {
  const root = '/api/v1'
  // the first entry whose path prefix matches
  const lists: [prefix: string, list: string, member: string][] = [
    ['/members/{user_id}', '/members', 'user_id'],
    ['/invitations/{id}', '/invitations', 'id'],
    ['/users/me/sessions/{id}', '/users/me/sessions', 'id'],
    ['/files/{id}/complete', '/files/uploads', 'id'],
    ['/files/uploads/{id}', '/files/uploads', 'id'],
    ['/files/{id}/restore', '/files?deleted=true', 'id'],
    ['/files/{id}', '/files', 'id']
  ]

  let runs = 0
  let paths: Document['paths'] | undefined
  const pathsOf = (system: System) => {
    paths ??= system.specSelectors.specJson().toJS().paths
    return paths
  }

  // each change renders the page again, so unchanged values are not set
  const filled = new Map<string, string>()
  function fill(system: System, path: string, values: Record<string, string>): void {
    for (const [method, { parameters = [] }] of Object.entries(pathsOf(system)[path] ?? {})) {
      for (const { name, in: where } of parameters) {
        const value = values[name]
        const field = `${method} ${path} ${name}`
        if (where !== 'path' || value === undefined || value === (filled.get(field) ?? '')) continue
        filled.set(field, value)
        system.specActions.changeParam([path, method], name, where, value)
      }
    }
  }

  async function fillFromLists(system: System): Promise<void> {
    const token = system.authSelectors.authorized().getIn(['bearer', 'value'])
    if (!token) return
    const run = ++runs
    const last = new Map<string, Listed | undefined>()
    for (const list of new Set(lists.map(([, each]) => each))) {
      const reply = await fetch(root + list, { headers: { authorization: `Bearer ${token}` } })
      if (reply.ok)
        last.set(
          list,
          ((await reply.json()) as { data: Listed[] }).data.findLast(({ current }) => !current)
        )
    }
    if (run !== runs) return
    for (const path of Object.keys(pathsOf(system))) {
      const found = lists.find(([prefix]) => path.startsWith(root + prefix))
      if (!found || !last.has(found[1])) continue
      fill(system, path, { [found[2]]: last.get(found[1])?.[found[2]] ?? '' })
    }
  }

  /**
   * Takes ids from URLs in a reply, such as the Location of an upload, by matching them with the paths of the document.
   */
  function fillFromLinks(system: System, { text, headers = {} }: Reply): void {
    // a binary body is not a string
    const addresses = typeof text === 'string' ? text.matchAll(/"(?:[a-z]+:\/\/[^"/]+)?(\/api\/v1\/[^"?]+)/g) : []
    const links = [...addresses].map(([, link]) => link as string)
    if (headers.location) links.push(new URL(headers.location, 'http://this.host').pathname)
    for (const path of Object.keys(pathsOf(system))) {
      const expression = new RegExp(`^${path.replaceAll(/\{(\w+)\}/g, '(?<$1>[^/]+)')}$`)
      for (const link of links) {
        const values = expression.exec(link)?.groups
        if (values) fill(system, path, values)
      }
    }
  }

  /**
   * Drops bodies and headers of refusals from the document that the page has read, which resolves all of it anew for each operation
   * that is opened. Every refusal has the same body (the schema Problem), and its description lists its codes.
   */
  function withoutRefusalBodies(document: Document): Document {
    for (const { responses = {} } of Object.values(document.paths).flatMap((item) => Object.values(item))) {
      for (const [status, response] of Object.entries(responses)) {
        if (status < '4') continue
        delete response.content
        delete response.headers
      }
    }
    return document
  }

  return {
    statePlugins: {
      auth: {
        wrapActions: {
          authorize: (original: Action<[unknown]>, system: System) => (given: unknown) => {
            const done = original(given)
            void fillFromLists(system)
            return done
          }
        }
      },
      spec: {
        wrapActions: {
          updateJsonSpec: (original: Action<[Document]>) => (document: Document) =>
            original(withoutRefusalBodies(document)),
          setResponse:
            (original: Action<[string, string, Reply]>, system: System) =>
            (path: string, method: string, reply: Reply) => {
              const done = original(path, method, reply)
              if (reply.ok) fillFromLinks(system, reply)
              if (reply.ok && method !== 'get') void fillFromLists(system)
              return done
            }
        }
      }
    }
  }
}
