import type { FastifyReply, FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import { decide } from '../../src/auth/admission.ts'
import { isDecodable } from '../../src/http/paths.ts'
import { malformedRequest, methodNotAllowed, type Problem, routeNotFound } from '../../src/http/problems.ts'

const page = '/api/v1/docs'
const document = '/api/v1/openapi.json'

/** Answers requests for paths and methods without a route. Must be registered after the guard. */
export default fp(
  async (app) => {
    const routes = new Map<string, { pattern: RegExp; methods: Set<string> }>()

    app.addHook('onRoute', (route) => {
      const { method, url } = route
      if (url.includes('*')) return
      const escaped = url.replaceAll(/[.+?^$()[\]{}|\\]/g, '\\$&').replaceAll(/:[A-Za-z_]+/g, '[^/]+')
      const { methods } = routes.get(url) ?? { methods: new Set() }
      for (const each of [method].flat()) methods.add(each)
      routes.set(url, { pattern: new RegExp(`^${escaped}$`), methods })
      if (!url.includes(':')) return
      // the router has a tree for each method, so a DELETE of `/files/uploads` matches `/files/:id`
      const refuseLiteral = (request: FastifyRequest, reply: FastifyReply, done: () => void) => {
        if (routes.has(pathOf(request))) answer(request, reply)
        else done()
      }
      // before the guard: a path without this method is a 405 for every caller
      route.onRequest = [refuseLiteral, ...[route.onRequest ?? []].flat()]
    })

    // before the body is read, because no route reads it
    app.addHook('preParsing', (request, reply, _payload, done) => {
      if (request.is404) answer(request, reply)
      else done()
    })
    // reached by preflights that the CORS plugin did not answer
    app.setNotFoundHandler(answer)

    function answer(request: FastifyRequest, reply: FastifyReply): void {
      const methods = methodsOf(request)
      const problem = problemOf(request, methods)
      if (problem) reply.send(problem)
      else reply.code(204).header('allow', methods.join(', ')).send()
    }

    /** Undefined for an OPTIONS request for a path that exists. */
    function problemOf(request: FastifyRequest, methods: string[]): Problem | undefined {
      const { refusal } = decide({ access: 'public' }, request)
      if (refusal) return refusal
      if (!isDecodable(request.originalUrl)) return malformedRequest()
      if (methods.length === 0) {
        const detail = `the API is described at ${page}, and for programs at ${document}`
        return routeNotFound(routes.has(document) ? { detail } : {})
      }
      if (request.method === 'OPTIONS') return undefined
      return methodNotAllowed({ headers: { allow: methods.join(', ') } })
    }

    /** The methods of a path, with OPTIONS. A literal route takes precedence over a route with parameters. */
    function methodsOf(request: FastifyRequest): string[] {
      const path = pathOf(request)
      const literal = routes.get(path)
      const found = literal ? [literal] : [...routes.values()].filter(({ pattern }) => pattern.test(path))
      const methods = found.flatMap(({ methods }) => [...methods])
      return methods.length > 0 ? [...new Set([...methods, 'OPTIONS'])].sort() : []
    }
  },
  { name: 'methods', dependencies: ['errors'] }
)

/** The path, decoded like the router decodes it. */
const pathOf = ({ url }: FastifyRequest) => decodeURI(url.split('?', 1)[0] as string)
