import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { startEmbedded } from '../../db/embedded.ts'
import { migrate } from '../../db/migrate.ts'
import { buildApp } from '../app.ts'
import { readConfig } from '../config/config.ts'
import { createCommand, readOptions } from './command.ts'

readOptions(
  createCommand(
    'openapi',
    'Writes the OpenAPI document to client/openapi.json, from which the clients are generated. A test fails when the file differs from the document of the server.'
  )
)

const dir = mkdtempSync(join(tmpdir(), 'aggios-openapi-'))
const server = await startEmbedded(dir, { durable: false })
await migrate(server.url('aggios_owner'))
const app = buildApp(readConfig({ DATABASE_URL: server.url('aggios_app'), DATA_DIR: dir, LOG_LEVEL: 'warn' }))
await app.ready()
writeFileSync(
  join(import.meta.dirname, '..', '..', 'client', 'openapi.json'),
  `${JSON.stringify(app.swagger(), null, 2)}\n`
)
await app.close()
await server.stop()
rmSync(dir, { recursive: true, force: true })
