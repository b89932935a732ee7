/** The bytes of a file. */
export const fileKey = (tenantId: string, id: string) => `${tenantId}/files/${id}`
/** What a client has put into the store itself and nobody has looked at yet. */
export const uploadKey = (tenantId: string, id: string) => `${tenantId}/uploads/${id}`
/** An avatar or a logo; the owner is a user or a tenant. */
export const imageKey = (ownerId: string, id: string) => `${ownerId}/images/${id}`
/** The image's address, by which whoever is shown it may fetch it: its id can't be guessed. */
export const imagePath = (ownerId: string, id: string) => `/api/v1/images/${ownerId}/${id}`

/** Whether a key is of our making; anything else in the bucket is none of our business. */
export const isOurKey = (key: string) =>
  /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\/(files|uploads|images)\/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(
    key
  )

/** The object that says to which installation the store belongs (db/queries/store-fence.ts). It sorts behind all others. */
export const markKey = 'installation'
