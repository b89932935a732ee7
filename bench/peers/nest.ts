import 'reflect-metadata'
import { Controller, Get, Module, Param } from '@nestjs/common'
import { NestFactory } from '@nestjs/core'
import { FastifyAdapter } from '@nestjs/platform-fastify'
import pg from 'pg'
import { userText } from './query.ts'

/* NestJS on Fastify. Node does not run decorators, so they are called here as a compiler would call them. */

const { DATABASE_URL, PORT } = process.env
const pool = new pg.Pool({ connectionString: DATABASE_URL })

class UsersController {
  async read(tenantId: string, userId: string) {
    const { rows } = await pool.query({ name: 'user', text: userText, values: [tenantId, userId] })
    return rows[0]
  }
}
Param('tenant_id')(UsersController.prototype, 'read', 0)
Param('user_id')(UsersController.prototype, 'read', 1)
const method = Object.getOwnPropertyDescriptor(UsersController.prototype, 'read') as PropertyDescriptor
Get(':tenant_id/:user_id')(UsersController.prototype, 'read', method)
Controller('users')(UsersController)

class AppModule {}
Module({ controllers: [UsersController] })(AppModule)

const app = await NestFactory.create(AppModule, new FastifyAdapter(), { logger: false })
await app.listen(Number(PORT), '127.0.0.1')
