import t from 'tap'
import { createFile, fileForm } from './forms.ts'
import { allRows, createTenant, startApp } from './harness.ts'

t.test('an agency has so many files at most, however little is in them', async (t) => {
  const app = await startApp(t, { MAX_FILES: '3' })
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  const counted = async () =>
    (await allRows(app.database, 'select files::int as files from storage_usage where tenant_id = $1', [acme.id]))[0]
      ?.files
  const uploads = await Promise.all(Array.from({ length: 10 }, () => acme.send(fileForm('', 'empty.txt'))))
  t.equal(uploads.filter(({ statusCode }) => statusCode === 201).length, 3, 'also at once')
  const refused = uploads.find(({ statusCode }) => statusCode !== 201)
  t.match(refused?.json(), { status: 422, code: 'quota_exceeded' })
  t.equal(await counted(), 3)
  await createFile(rival, '', 'empty.txt')

  const { id } = uploads.find(({ statusCode }) => statusCode === 201)?.json() ?? {}
  t.equal((await acme.send({ method: 'DELETE', url: `/api/v1/files/${id}` })).statusCode, 204)
  t.equal((await acme.send(fileForm('', 'empty.txt'))).statusCode, 422, 'a deleted file can be restored, so it counts')
  await allRows(app.database, "update files set expires_at = now() where status = 'deleted'")
  await app.objectSweep.run()
  t.equal(await counted(), 2)
  t.equal((await acme.send(fileForm('', 'empty.txt'))).statusCode, 201)
})
