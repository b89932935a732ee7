import { createAggiosClient, localStorageStore, ProblemError, unwrap } from '@aggios/client'

/*
 * The smallest page that an agency could have: it signs in, says who somebody is, and signs out. Its API is named in the
 * query string.
 */

const client = createAggiosClient({
  baseUrl: new URLSearchParams(location.search).get('api'),
  store: localStorageStore(),
  onSignedOut: ({ code }) => show('because', code)
})

const element = (id) => document.getElementById(id)

function show(id, text) {
  element(id).textContent = text
}

/** What the work gives, or why it was refused. */
async function run(work) {
  show('said', '')
  show('refused', '')
  try {
    show('said', await work())
  } catch (err) {
    show('refused', err instanceof ProblemError ? `${err.status} ${err.code} ${err.request_id}` : `no reply: ${err}`)
  }
}

element('sign-in').addEventListener('submit', (event) => {
  event.preventDefault()
  const { email, password } = Object.fromEntries(new FormData(event.target))
  run(async () => {
    await client.signIn({ email, password })
    return 'signed in'
  })
})
element('who').addEventListener('click', () =>
  run(async () => {
    const { name, role } = await unwrap(client.GET('/api/v1/users/me'))
    return `${name}, ${role}`
  })
)
element('sign-out').addEventListener('click', () =>
  run(async () => {
    await client.signOut()
    return 'signed out'
  })
)
document.body.dataset.ready = 'yes'
