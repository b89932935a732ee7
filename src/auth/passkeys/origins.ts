import { isBelow, originHost } from '../../config/value-readers.ts'

/*
 * Which pages and apps may use a passkey, and for which domain (the RP ID of WebAuthn). Both are lists of exact origins: a
 * page that an attacker has somewhere below the domain must not do.
 */

export type PasskeySettings = {
  nodeEnv: 'development' | 'production'
  baseDomain: string
  /** PASSKEY_RP_ID */
  passkeyRpId: string | undefined
  /** PASSKEY_ORIGINS: the origins of native apps, which serve every agency. */
  passkeyOrigins: readonly string[]
  corsOrigins: readonly string[]
  appUrl: string
}

/** What is needed of a tenant. */
type PasskeyTenant = { slug: string; settings: { allowed_origins?: readonly string[] } }

export type PasskeyOrigins = {
  /** The domain that a passkey belongs to when a page of this origin makes or uses it. */
  rpIdOf(origin: string): string
  /** Whether a page or an app of this origin may sign in to this tenant, and act for its members. */
  isAllowed(origin: string, tenant: PasskeyTenant): boolean
}

/**
 * The rules of a deployment.
 *
 * All agencies share one RP ID, so a passkey works at each of them, and so a page of one agency could ask for a
 * signature that another agency takes. Therefore a signature counts only for the agency whose page it was made on: the
 * page of `APP_URL` for this agency, those of its setting `allowed_origins` and of `CORS_ORIGINS`, and the native apps of
 * `PASSKEY_ORIGINS`.
 *
 * Chromium refuses an RP ID without a dot for a page below it, such as `localhost` for `acme.localhost`. Where
 * BASE_DOMAIN has none, in development, the host of each page is its own RP ID.
 */
export function createPasskeyOrigins(settings: PasskeySettings): PasskeyOrigins {
  const { nodeEnv, baseDomain, appUrl } = settings
  const rpId = settings.passkeyRpId ?? (baseDomain.includes('.') ? baseDomain : undefined)
  const development = nodeEnv === 'development'
  const native = new Set(settings.passkeyOrigins)

  return {
    rpIdOf: (origin) => rpId ?? originHost(origin) ?? baseDomain,
    isAllowed(origin, tenant) {
      if (native.has(origin)) return true
      const host = originHost(origin)
      // browsers offer passkeys to secure pages only, which those of localhost are
      if (host === undefined || !(origin.startsWith('https://') || development)) return false
      if (rpId !== undefined && !isBelow(origin, rpId)) return false
      if (development && (host === 'localhost' || host === `${tenant.slug}.localhost`)) return true
      return (
        origin === originOf(appUrl.replaceAll('{slug}', tenant.slug)) ||
        settings.corsOrigins.includes(origin) ||
        (tenant.settings.allowed_origins ?? []).includes(origin)
      )
    }
  }
}

const originOf = (url: string): string | undefined => (URL.canParse(url) ? new URL(url).origin : undefined)
