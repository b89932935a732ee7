import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import { catalogue, notFound, type ProblemKind } from '../../src/http/problems.ts'

const Params = Type.Object({ code: Type.String({ maxLength: 64, examples: ['validation_failed'] }) })

/**
 * The pages behind the `type` of problem documents. They exist on every host: `tenant_not_found` is sent on hosts of no
 * tenant.
 */
const problems: FastifyPluginAsyncTypebox = async (app) => {
  app.get(
    '/:code',
    {
      config: { access: 'public', host: 'any', problems: ['not_found'] },
      schema: {
        operationId: 'getProblem',
        summary: 'What a problem means and what to do',
        description: 'The `type` of every problem document leads here.',
        tags: ['docs'],
        params: Params,
        response: { 200: { description: 'A page', content: { 'text/html': { schema: Type.String() } } } }
      }
    },
    async (request, reply) => {
      const kind = catalogue.get(request.params.code)
      if (!kind) throw notFound()
      reply.type('text/html; charset=utf-8').header('cache-control', 'public, max-age=3600')
      return page(kind)
    }
  )
}

/** Renders a page. All texts come from the catalogue, so nothing needs escaping. */
function page({ code, status, title, remedy }: ProblemKind): string {
  const marked = remedy.replaceAll(/`([^`]+)`/g, '<code>$1</code>')
  return `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>${code}</title>
<h1>${title}</h1>
<p>Status ${status}, code <code>${code}</code></p>
<p>${marked}</p>
<p><a href="/api/v1/docs">API documentation</a></p>
</html>
`
}

export default problems
