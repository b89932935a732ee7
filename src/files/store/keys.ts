/** The key of a file's bytes. */
export const fileKey = (tenantId: string, id: string) => `${tenantId}/files/${id}`
/** The key of bytes that a client has sent directly to the store and the server has not checked yet. */
export const uploadKey = (tenantId: string, id: string) => `${tenantId}/uploads/${id}`
/** The key of an avatar or a logo. The owner is a user or a tenant. */
export const imageKey = (ownerId: string, id: string) => `${ownerId}/images/${id}`
/** The path of an image's URL. Fetching it needs no token, because the id can't be guessed. */
export const imagePath = (ownerId: string, id: string) => `/api/v1/images/${ownerId}/${id}`

/** Whether the server has made this key. Other objects of the bucket are left alone. */
export const isOurKey = (key: string) =>
  /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\/(files|uploads|images)\/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(
    key
  )

/**
 * The key of the object that names the installation to which the store belongs (db/queries/store-fence.ts). It sorts
 * last.
 */
export const markKey = 'installation'

/** The key of the object that names the store for its copy in the bucket for backups (src/files/object-backup.ts). */
export const copyMarkKey = 'installation-copy'
