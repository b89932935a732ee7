import t from 'tap'
import { examine } from '../src/cli/doctor/doctor.ts'
import { readConfig } from '../src/config/config.ts'
import type { Environment } from '../src/config/environment.ts'
import { createTestDatabase, testEnvironment } from './harness.ts'
import { asRoot, bucket, objectStores } from './object-stores.ts'

/*
 * The doctor and real stores: a store that is set up as the manual says has no findings.
 */

const public_ = {
  Version: '2012-10-17',
  Statement: [
    { Effect: 'Allow', Principal: { AWS: ['*'] }, Action: ['s3:GetObject'], Resource: [`arn:aws:s3:::${bucket}/*`] }
  ]
}

for (const { name, skip, start } of objectStores.filter(({ name }) => name !== 'disk')) {
  t.test(name, { skip }, async (t) => {
    const store = await start(t)
    const { app, root } = store.s3 as NonNullable<typeof store.s3>
    const database = await createTestDatabase(t)
    const look = async (change: Environment = {}) => {
      const env = testEnvironment(database, { ...store.environment, ...change })
      const config = readConfig(env)
      const limits = { slowStoreMs: 60_000, checkMs: 60_000 }
      const report = await examine({ config, env, databaseUrl: database.serving, limits }, { only: ['store'] })
      return { codes: report.findings.map(({ code }) => code), report }
    }

    const { codes, report } = await look()
    t.strictSame(codes, [], 'sound')
    t.strictSame(
      report.not_checked.filter(({ check }) => !['version of the store', 'copy of the files'].includes(check)),
      []
    )
    const rootKey = { S3_ACCESS_KEY: root.access_key, S3_SECRET_KEY: root.secret_key }
    t.strictSame((await look(rootKey)).codes, ['store_key_too_powerful'], 'the key of the administrator')
    t.strictSame((await look({ S3_SECRET_KEY: `${app.secret_key}x` })).codes, ['store_refuses'], 'a wrong key')

    const admin = asRoot(root)
    await admin.putObject(bucket, 'installation', '{"installation":"another","database":"1/2","generation":3}')
    await admin.setBucketPolicy(bucket, JSON.stringify(public_))
    t.strictSame((await look()).codes, ['bucket_public', 'store_fenced'], 'public, and of another installation')
  })
}
