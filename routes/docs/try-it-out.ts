/*
 * Code for the page that shows the OpenAPI document. The text of each function is sent to the browser, so a function
 * must not refer to anything outside itself.
 */

type Fields = { getIn(way: string[]): unknown; toJS(): Document }
type Operation = { parameters?: { name: string; in: string }[] }
type Document = { paths: Record<string, Record<string, Operation>> }
type Definitions = { filter(keep: (definition: { has(name: string): boolean }) => boolean): Definitions }
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
 *
 * Tokens of bound sessions are not offered, because the page can't sign the proof that each request needs.
 */
export function tryItOut() {
  const root = '/api/v1'
  // the first entry whose path prefix matches
  const lists: [prefix: string, list: string, member: string][] = [
    ['/members/{user_id}', '/members', 'user_id'],
    ['/invitations/{id}', '/invitations', 'id'],
    ['/users/me/sessions/{id}', '/users/me/sessions', 'id'],
    ['/users/me/passkeys/{id}', '/users/me/passkeys', 'id'],
    ['/users/me/identities/{id}', '/users/me/identities', 'id'],
    ['/identity-providers/{id}', '/identity-providers', 'id'],
    ['/domains/{name}', '/domains', 'name'],
    ['/webhooks/{id}', '/webhooks', 'id'],
    ['/api-keys/{id}', '/api-keys', 'id'],
    ['/enforcement/break-glass/{user_id}', '/members', 'user_id'],
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

  /** The page shows a reply when it has ended, and a stream of events would never. */
  let isStreamLimited = false
  function limitStream({ specActions }: System): void {
    if (!isStreamLimited) specActions.changeParam([`${root}/events`, 'get'], 'seconds', 'query', '5')
    isStreamLimited = true
  }

  async function fillFromLists(system: System): Promise<void> {
    const token = system.authSelectors.authorized().getIn(['bearer', 'value'])
    if (!token) return
    limitStream(system)
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
    // a path of the document itself, as in its own text, has no ids
    const links = [...addresses].map(([, link]) => link as string).filter((link) => !(link in pathsOf(system)))
    if (headers.location) links.push(new URL(headers.location, 'http://this.host').pathname)
    for (const path of Object.keys(pathsOf(system))) {
      // what is done to an object inside of another one has both ids from a link to it
      const shown = path.split('{').length > 2 ? path.slice(0, path.lastIndexOf('}') + 1) : path
      const expression = new RegExp(`^${shown.replaceAll(/\{(\w+)\}/g, '(?<$1>[^/]+)')}$`)
      for (const link of links) {
        const values = expression.exec(link)?.groups
        if (values) fill(system, path, values)
      }
    }
  }

  /**
   * Returns a copy of a value of the document, with the schemas that it refers to in place of the references. The page
   * asks for it when an operation is opened. Its own function resolves the whole document each time, which takes a
   * second. In this document all references lead into the document, and none leads back to itself.
   */
  function withReferences(document: object, value: unknown): unknown {
    if (Array.isArray(value)) return value.map((each) => withReferences(document, each))
    if (typeof value !== 'object' || value === null) return value
    const { $ref, ...rest } = value as { $ref?: unknown }
    if (typeof $ref === 'string') {
      const target = at(document, $ref.slice(2).split('/'))
      return { ...(withReferences(document, target) as object), ...rest }
    }
    return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, withReferences(document, each)]))
  }
  const at = (document: object, way: string[]) =>
    way.reduce<unknown>((value, name) => (value as Record<string, unknown> | undefined)?.[name], document)

  return {
    fn: {
      resolveSubtree: async (document: object, way: string[]) => ({
        spec: withReferences(document, at(document, way)) ?? null,
        errors: []
      })
    },
    statePlugins: {
      auth: {
        wrapSelectors: {
          definitionsToAuthorize:
            (original: (...given: unknown[]) => Definitions | null) =>
            (...given: unknown[]) =>
              original(...given)?.filter((definition) => !definition.has('dpop'))
        },
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
