"""Reading users' and official files: archives, images, masks, their audit."""
