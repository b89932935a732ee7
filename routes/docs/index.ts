import swaggerUi from '@fastify/swagger-ui'
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import { downloadDocument, tryItOut } from './try-it-out.ts'

const contentSecurityPolicy = [
  "default-src 'none'",
  "script-src 'self'",
  // scripts of the page set styles, some of them as attributes
  "style-src 'self' 'unsafe-inline'",
  // images in replies are shown as blobs
  "img-src 'self' data: blob:",
  "font-src 'self'",
  "connect-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'"
].join('; ')

const logo = Buffer.from(
  '<svg xmlns="http://www.w3.org/2000/svg" width="150" height="40"><text x="0" y="28" font-family="sans-serif" font-size="26" fill="#fff">Aggios</text></svg>'
)

/** The OpenAPI document, and a page to read it and to try the API. */
const docs: FastifyPluginAsyncTypebox = async (app) => {
  const tags = ['docs']
  const config = { access: 'public' } as const

  app.get(
    '/openapi.json',
    {
      config,
      schema: {
        operationId: 'getOpenapiJson',
        summary: 'This document as JSON',
        description: 'OpenAPI 3.1; generate a client from it.',
        tags,
        response: {
          200: {
            description: 'OpenAPI 3.1',
            content: { 'application/json': { schema: Type.Object({}, { additionalProperties: true }) } }
          }
        }
      }
    },
    (_request, reply) => {
      reply.header('cache-control', 'public, max-age=60')
      return app.swagger()
    }
  )

  app.get(
    '/openapi.yaml',
    {
      config,
      schema: {
        operationId: 'getOpenapiYaml',
        summary: 'This document as YAML',
        description: 'OpenAPI 3.1; generate a client from it.',
        tags,
        response: { 200: { description: 'OpenAPI 3.1', content: { 'application/yaml': { schema: Type.String() } } } }
      }
    },
    (_request, reply) => {
      reply.header('cache-control', 'public, max-age=60').type('application/yaml; charset=utf-8')
      return app.swagger({ yaml: true })
    }
  )

  app.register(async (page) => {
    // the third-party plugin registers the page and its assets; they are public
    page.addHook('onRoute', (route) => {
      Object.assign(route.config as object, { access: 'public' })
    })
    page.addHook('onRequest', (_request, reply, done) => {
      reply.header('content-security-policy', contentSecurityPolicy).header('cache-control', 'public, max-age=3600')
      done()
    })
    await page.register(swaggerUi, {
      routePrefix: '/docs',
      // the prefix from which the page loads its assets
      indexPrefix: '/api/v1',
      // persistAuthorization is off: a token stays in the memory of the page. Colours for JSON are off: they cost a quarter of the
      // time in which the page opens an operation
      uiConfig: {
        deepLinking: true,
        persistAuthorization: false,
        tryItOutEnabled: true,
        displayRequestDuration: true,
        syntaxHighlight: false,
        // the schemas are drawn when somebody opens their list: they cost time at each click
        defaultModelsExpandDepth: 0,
        plugins: [downloadDocument, tryItOut]
      },
      theme: { title: 'Aggios API' },
      logo: { type: 'image/svg+xml', content: logo, href: '/api/v1/docs' }
    })
  })
}

export default docs
