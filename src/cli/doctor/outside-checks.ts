import { once } from 'node:events'
import { connect } from 'node:tls'
import type { Check, Examination } from './examination.ts'
import { reasonOf } from './examination.ts'

/*
 * Other services: the addresses that people see, mail, providers of sign-ins. A start waits for none of them.
 */

export const outsideChecks: readonly Check[] = [
  { name: 'APP_URL', atStart: false, run: checkAppUrl },
  { name: 'API_URL', atStart: false, run: checkApiUrl },
  { name: 'certificates', atStart: false, run: checkCertificates },
  { name: 'mail server', atStart: false, run: checkMailServer },
  { name: 'providers', atStart: false, run: checkProviders },
  { name: 'list of breached passwords', atStart: false, run: checkBreachList }
]

const requestMs = 4000

async function get(url: string): Promise<{ status: number; text: string }> {
  const reply = await fetch(url, { redirect: 'manual', signal: AbortSignal.timeout(requestMs) })
  return { status: reply.status, text: (await reply.text()).slice(0, 10_000) }
}

/** Any name stands for all: agencies share one application, and one DNS entry. */
const appUrlOf = ({ config }: Examination) => config.appUrl.replaceAll('{slug}', 'doctor')

/** Whether people depend on the address. On a laptop the default address is the server's own. */
const isPublished = ({ config, env }: Examination, name: string) =>
  config.nodeEnv === 'production' || Boolean(env[name])

async function checkAppUrl(exam: Examination): Promise<void> {
  if (!isPublished(exam, 'APP_URL')) return exam.skipped('APP_URL', 'a development server has an address of its own')
  const url = appUrlOf(exam)
  await get(url).then(
    ({ status }) => status >= 500 && exam.found('app_url_unreachable', `${url} answers ${status}`),
    (err) => exam.found('app_url_unreachable', `${url}: ${reasonOf(err)}`)
  )
}

async function checkApiUrl(exam: Examination): Promise<void> {
  if (!isPublished(exam, 'API_URL')) return exam.skipped('API_URL', 'a development server has an address of its own')
  const url = `${exam.config.apiUrl}/api/v1/health/live`
  await get(url).then(
    ({ status, text }) => {
      if (status !== 200 || !/^\{"status":"ok"\}/.test(text)) {
        exam.found('api_url_unreachable', `${url} answers ${status}, and not as the API does`)
      }
    },
    (err) => exam.found('api_url_unreachable', `${url}: ${reasonOf(err)}`)
  )
}

/** Looks at the certificates of those of our addresses that answer. */
async function checkCertificates(exam: Examination): Promise<void> {
  const published = [
    isPublished(exam, 'APP_URL') ? appUrlOf(exam) : undefined,
    isPublished(exam, 'API_URL') ? exam.config.apiUrl : undefined
  ]
  const hosts = new Set(published.flatMap((url) => (url?.startsWith('https:') ? new URL(url).host : [])))
  for (const host of hosts) {
    const expires = await expiryOf(new URL(`https://${host}`)).catch(() => undefined)
    if (expires === undefined) continue
    const days = Math.floor((expires - exam.now()) / 86_400_000)
    if (days < exam.limits.certificateDays)
      exam.found('certificate_expiring', `that of ${host} is good for ${days} more days`)
  }
}

async function expiryOf({ hostname, port }: URL): Promise<number> {
  // also one that is not valid any more
  const socket = connect({ host: hostname, port: Number(port) || 443, servername: hostname, rejectUnauthorized: false })
  try {
    await once(socket, 'secureConnect', { signal: AbortSignal.timeout(requestMs) })
    return Date.parse(socket.getPeerCertificate().valid_to)
  } finally {
    socket.destroy()
  }
}

/** Signs in to the mail server, and sends nothing. */
async function checkMailServer(exam: Examination): Promise<void> {
  const { smtpUrl } = exam.config
  if (smtpUrl === undefined) return
  const { createTransport } = await import('nodemailer')
  const transport = createTransport(smtpUrl, {
    connectionTimeout: requestMs,
    greetingTimeout: requestMs,
    socketTimeout: requestMs
  } as never)
  await transport
    .verify()
    .catch((err) => exam.found('mail_server_unreachable', reasonOf(err)))
    .finally(() => transport.close())
}

async function checkProviders(exam: Examination): Promise<void> {
  const { googleClientId, googleIssuer, githubClientId, githubUrl } = exam.config
  const asked = [
    googleClientId && `${googleIssuer.replace(/\/$/, '')}/.well-known/openid-configuration`,
    githubClientId && `${githubUrl}/login`
  ]
  for (const url of asked) {
    if (!url) continue
    await get(url).then(
      ({ status }) => status >= 400 && exam.found('provider_unreachable', `${url} answers ${status}`),
      (err) => exam.found('provider_unreachable', `${url}: ${reasonOf(err)}`)
    )
  }
}

async function checkBreachList(exam: Examination): Promise<void> {
  const { breachListUrl } = exam.config
  if (breachListUrl === undefined) return
  await get(`${breachListUrl}00000`).then(
    ({ status }) => status !== 200 && exam.found('breach_list_unreachable', `it answers ${status}`),
    (err) => exam.found('breach_list_unreachable', reasonOf(err))
  )
}
