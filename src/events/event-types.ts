/**
 * The types of events: the changes of an agency that the audit log knows. Names are stable: webhooks are filtered by them,
 * and generated clients know them.
 *
 * `seen_by`: the lowest role that sees such events in the stream. Whoever did something, or to whom it was done, sees the
 * event as well. `target`: what `target_id` names.
 */
export const eventTypes = {
  'api_key.created': { seen_by: 'admin', target: 'API key', text: 'An API key was made' },
  'api_key.ended': { seen_by: 'admin', target: 'API key', text: 'An API key was ended' },
  'api_key.rotated': { seen_by: 'admin', target: 'API key', text: 'An API key has a new secret' },
  'domain.added': { seen_by: 'admin', target: null, text: 'A domain was added, which is not proven yet' },
  'domain.lost': {
    seen_by: 'admin',
    target: null,
    text: 'A domain is no longer proven: its record was missing for days'
  },
  'domain.removed': { seen_by: 'admin', target: null, text: 'A domain was removed' },
  'domain.verified': { seen_by: 'admin', target: null, text: 'A domain was proven by its DNS record' },
  'enforcement.ended': {
    seen_by: 'admin',
    target: 'identity provider',
    text: 'Members may sign in by other ways again'
  },
  'enforcement.started': {
    seen_by: 'admin',
    target: 'identity provider',
    text: 'Members must sign in by this provider'
  },
  'file.created': { seen_by: 'viewer', target: 'file', text: 'A file was uploaded' },
  'file.deleted': { seen_by: 'viewer', target: 'file', text: 'A file was deleted' },
  'file.lost': { seen_by: 'viewer', target: 'file', text: 'The content of a file is missing in the store' },
  'file.restored': { seen_by: 'viewer', target: 'file', text: 'A deleted file was restored' },
  'identity_provider.created': {
    seen_by: 'admin',
    target: 'identity provider',
    text: 'An identity provider was added'
  },
  'identity_provider.deleted': {
    seen_by: 'admin',
    target: 'identity provider',
    text: 'An identity provider was removed'
  },
  'identity_provider.updated': {
    seen_by: 'admin',
    target: 'identity provider',
    text: 'An identity provider was changed'
  },
  'invitation.accepted': {
    seen_by: 'admin',
    target: 'invitation',
    text: 'An invitation was accepted: its person is a member now'
  },
  'invitation.created': { seen_by: 'admin', target: 'invitation', text: 'Somebody was invited' },
  'invitation.resent': { seen_by: 'admin', target: 'invitation', text: 'An invitation was sent again' },
  'invitation.revoked': { seen_by: 'admin', target: 'invitation', text: 'An invitation was revoked' },
  'mail.dropped': { seen_by: 'admin', target: 'mail', text: 'An operator dropped a mail that waited' },
  'mail.retried': { seen_by: 'admin', target: 'mail', text: 'An operator had a mail sent again' },
  'member.added': {
    seen_by: 'viewer',
    target: 'person',
    text: 'Somebody became a member: by an invitation, or by signing in with a provider'
  },
  'member.break_glass_granted': {
    seen_by: 'admin',
    target: 'person',
    text: 'An owner may sign in without the enforced provider'
  },
  'member.break_glass_removed': {
    seen_by: 'admin',
    target: 'person',
    text: 'An owner may no longer sign in without the enforced provider'
  },
  'member.removed': { seen_by: 'viewer', target: 'person', text: 'Somebody is no longer a member' },
  'member.role_changed': { seen_by: 'viewer', target: 'person', text: 'The role of a member was changed' },
  'member.sessions_ended': { seen_by: 'admin', target: 'person', text: 'A member was signed out of the agency' },
  'session.break_glass': {
    seen_by: 'admin',
    target: 'person',
    text: 'An owner signed in without the enforced provider'
  },
  'session.ended': { seen_by: 'admin', target: null, text: 'Somebody signed out' },
  'session.opened': { seen_by: 'admin', target: null, text: 'Somebody signed in' },
  'session.reauthenticated': { seen_by: 'admin', target: null, text: 'Somebody proved again who they are' },
  'session.refresh_reused': {
    seen_by: 'admin',
    target: null,
    text: 'A used refresh token was shown again, and its session has ended'
  },
  'session.switched': { seen_by: 'admin', target: null, text: 'Somebody came from another agency of theirs' },
  'tenant.deleted': { seen_by: 'viewer', target: 'agency', text: 'The agency was deleted, and will be purged' },
  'tenant.exported': { seen_by: 'admin', target: 'agency', text: 'The agency was exported' },
  'tenant.imported': { seen_by: 'admin', target: 'agency', text: 'The agency came from another installation' },
  'tenant.logo_removed': { seen_by: 'viewer', target: 'agency', text: 'The logo was removed' },
  'tenant.logo_set': { seen_by: 'viewer', target: 'agency', text: 'The agency has a new logo' },
  'tenant.plan_changed': { seen_by: 'viewer', target: 'agency', text: 'The agency has another plan' },
  'tenant.purged': { seen_by: 'admin', target: 'agency', text: 'The agency was purged' },
  'tenant.registered': { seen_by: 'admin', target: 'agency', text: 'The agency was founded' },
  'tenant.restored': { seen_by: 'admin', target: 'agency', text: 'The agency was restored to an earlier time' },
  'tenant.resumed': { seen_by: 'viewer', target: 'agency', text: 'The agency is active again' },
  'tenant.suspended': { seen_by: 'viewer', target: 'agency', text: 'The agency was suspended' },
  'tenant.transferred': { seen_by: 'viewer', target: 'person', text: 'The agency has another owner' },
  'tenant.updated': { seen_by: 'viewer', target: 'agency', text: 'Name or settings of the agency were changed' },
  'upload.ended': { seen_by: 'admin', target: 'file', text: 'An unfinished upload was ended' },
  'user.address_released': { seen_by: 'admin', target: 'person', text: 'An unproven address was given to its owner' },
  'user.avatar_removed': { seen_by: 'viewer', target: 'person', text: 'Somebody removed their picture' },
  'user.avatar_set': { seen_by: 'viewer', target: 'person', text: 'Somebody has a new picture' },
  'user.deleted': { seen_by: 'viewer', target: 'person', text: 'Somebody ended their account' },
  'user.disabled': { seen_by: 'admin', target: 'person', text: 'An operator disabled an account' },
  'user.email_change_requested': {
    seen_by: 'admin',
    target: 'person',
    text: 'Somebody asked for another e-mail address'
  },
  'user.email_changed': { seen_by: 'admin', target: 'person', text: 'Somebody has another e-mail address' },
  'user.email_verified': { seen_by: 'admin', target: 'person', text: 'Somebody verified their e-mail address' },
  'user.enabled': { seen_by: 'admin', target: 'person', text: 'An operator enabled an account again' },
  'user.identity_linked': {
    seen_by: 'admin',
    target: 'person',
    text: 'A sign-in by a provider was linked to an account'
  },
  'user.identity_unlinked': {
    seen_by: 'admin',
    target: 'person',
    text: 'A sign-in by a provider was removed from an account'
  },
  'user.mfa_enabled': { seen_by: 'admin', target: 'person', text: 'Somebody has a second factor' },
  'user.mfa_removed': { seen_by: 'admin', target: 'person', text: 'Somebody has no second factor any more' },
  'user.passkey_added': { seen_by: 'admin', target: 'person', text: 'Somebody added a passkey' },
  'user.passkey_removed': { seen_by: 'admin', target: 'person', text: 'Somebody removed a passkey' },
  'user.password_changed': { seen_by: 'admin', target: 'person', text: 'Somebody changed their password' },
  'user.password_reset': { seen_by: 'admin', target: 'person', text: 'Somebody set a new password by mail' },
  'user.recovery_code_used': { seen_by: 'admin', target: 'person', text: 'Somebody signed in with a recovery code' },
  'user.recovery_codes_renewed': { seen_by: 'admin', target: 'person', text: 'Somebody made new recovery codes' },
  'user.sessions_ended': { seen_by: 'admin', target: 'person', text: 'Somebody ended their other sessions' },
  'user.signed_out': { seen_by: 'admin', target: 'person', text: 'An operator signed somebody out' },
  'user.updated': { seen_by: 'viewer', target: 'person', text: 'Somebody changed their name' },
  'webhook.created': { seen_by: 'admin', target: 'webhook', text: 'A webhook was added' },
  'webhook.deleted': { seen_by: 'admin', target: 'webhook', text: 'A webhook was removed' },
  'webhook.disabled': {
    seen_by: 'admin',
    target: 'webhook',
    text: 'A webhook was switched off, because its endpoint failed for days or said that it is gone'
  },
  'webhook.replayed': { seen_by: 'admin', target: 'webhook', text: 'Events are delivered to a webhook again' },
  'webhook.secret_rotated': { seen_by: 'admin', target: 'webhook', text: 'A webhook has a new signing secret' },
  'webhook.updated': { seen_by: 'admin', target: 'webhook', text: 'A webhook was changed' }
} as const satisfies Record<string, { seen_by: 'viewer' | 'admin'; target: string | null; text: string }>

export type EventType = keyof typeof eventTypes

/**
 * Actions of the audit log that are no events: what was refused, tried or only asked for. Strangers can cause any number of
 * these. The trigger on `audit_events` leaves them out.
 */
export const attemptActions = [
  'authz.denied',
  'session.challenged',
  'session.code_reused',
  'session.refresh_repeated',
  'session.refused',
  'user.passkey_refused',
  'user.password_reset_requested'
]
