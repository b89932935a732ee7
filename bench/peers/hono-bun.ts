import { Hono } from 'hono'

/* Hono on Bun, with Bun's SQL client, which prepares and pipelines statements by default. Runs on Bun only. */

type Sql = (text: TemplateStringsArray, ...values: string[]) => Promise<unknown[]>
declare const Bun: {
  SQL: new (url: string) => Sql
  serve(options: { hostname: string; port: number; fetch: unknown }): void
}

const { DATABASE_URL, PORT } = process.env
const sql = new Bun.SQL(DATABASE_URL as string)
const app = new Hono()

app.get('/users/:tenant_id/:user_id', async (context) => {
  const { tenant_id, user_id } = context.req.param()
  const [user] = await sql`
    select u.id, u.email, u.name, u.avatar_url, u.email_verified_at is not null as email_verified,
    u.mfa_enabled_at is not null as mfa_enabled, m.tenant_id, m.role,
      u.created_at, greatest(u.updated_at, m.updated_at) as updated_at
    from memberships m join users u on u.id = m.user_id
    where m.tenant_id = ${tenant_id} and m.user_id = ${user_id}`
  return context.json(user as object)
})

Bun.serve({ hostname: '127.0.0.1', port: Number(PORT), fetch: app.fetch })
