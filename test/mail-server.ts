import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import { SMTPServer } from 'smtp-server'
import { eventually, type Owner } from './harness.ts'

/** Decodes quoted-printable, as far as the product's mails need it. */
export function decodeMail(text: string): string {
  const bytes = text
    .replaceAll(/=\r?\n/g, '')
    .replaceAll(/=([0-9A-F]{2})/g, (_, hex) => String.fromCharCode(Number.parseInt(hex, 16)))
  return Buffer.from(bytes, 'latin1').toString()
}

/** A mail server that accepts every mail. */
export async function startMailbox(t: Owner) {
  const received: { to: string; text: string }[] = []
  const server = new SMTPServer({
    authOptional: true,
    disabledCommands: ['STARTTLS'],
    logger: false,
    onData(stream, session, done) {
      let text = ''
      stream.setEncoding('utf8').on('data', (chunk: string) => {
        text += chunk
      })
      stream.on('end', () => {
        for (const { address } of session.envelope.rcptTo) received.push({ to: address, text: decodeMail(text) })
        done()
      })
    }
  })
  // a product that a test kills cuts its connection off
  server.on('error', () => {})
  server.listen(0, '127.0.0.1')
  await once(server.server, 'listening')
  t.teardown(() => new Promise<void>((done) => server.close(() => done())))
  const taken = new Map<string, number>()
  const linksTo = (email: string, path: string) =>
    received
      .filter(({ to }) => to === email)
      .flatMap(({ text }) => text.match(/https?:\/\/[^\s<>"]+/g)?.find((link) => new URL(link).pathname === path) ?? [])
  return {
    url: `smtp://127.0.0.1:${(server.server.address() as AddressInfo).port}`,
    received,
    /** Resolves to the link of the next mail to the address that leads to the path. Each is given once. */
    async nextLink(email: string, path: string): Promise<string> {
      const key = `${email} ${path}`
      const given = taken.get(key) ?? 0
      await eventually(() => linksTo(email, path).length > given)
      taken.set(key, given + 1)
      return linksTo(email, path)[given] as string
    }
  }
}
